//! What this engine needs of the kernel, shown on a ring that is dropped again: tokio-uring says of a failure only that there was one,
//! and a ring that cannot be entered would leave it waiting for ever.
#![expect(unsafe_code, reason = "pushing an entry always is")]

use std::time::Duration;

use io_uring::types::{CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode};

use super::SIZES;
use crate::shard::inbox::Inbox;
use crate::shard::startup::{self, StartupError};

/// The first kernel whose entering takes a time limit, without which nothing can be tried.
const OLDEST_TO_TRY: (u32, u32) = (5, 11);
/// The first that cancels by descriptor.
const OLDEST: &str = "5.19";
/// How long the kernel may take to answer.
const PROBE: Duration = Duration::from_secs(1);
/// POLLIN.
const READABLE: u32 = 1;
/// Marks the poll among the completions.
const POLL: u64 = 1;

/// The operations used, with the name to print.
const OPERATIONS: [(u8, &str); 6] = [
    (opcode::Nop::CODE, "NOP"),
    (opcode::PollAdd::CODE, "POLL_ADD"),
    (opcode::Connect::CODE, "CONNECT"),
    (opcode::Recv::CODE, "RECV"),
    (opcode::Send::CODE, "SEND"),
    (opcode::AsyncCancel2::CODE, "ASYNC_CANCEL"),
];

/// Goes up the ladder.
pub(super) fn climb() -> Result<(), StartupError> {
    let kernel = startup::kernel();
    if startup::parse_kernel(&kernel).is_some_and(|version| version < OLDEST_TO_TRY) {
        return Err(StartupError::Kernel { found: kernel, needed: OLDEST });
    }
    let built = IoUring::builder().setup_cqsize(SIZES.completions).build(SIZES.submissions);
    let mut uring = built.map_err(|error| startup::explain_setup(error, SIZES))?;
    startup::enter_once(&mut uring)?;
    startup::look_for_operations(&uring, &OPERATIONS, SIZES)?;
    if cancels_by_descriptor(&mut uring)? {
        return Ok(());
    }
    Err(StartupError::Kernel { found: kernel, needed: OLDEST })
}

/// Whether a poll that waits is ended by a cancel that names its descriptor: tried, for distributions carry it back to older kernels.
fn cancels_by_descriptor(uring: &mut IoUring) -> Result<bool, StartupError> {
    let (inbox, _postbox) = Inbox::new().map_err(|source| StartupError::Descriptors { source })?;
    let silent = Fd(inbox.bell());
    let poll = opcode::PollAdd::new(silent, READABLE).build().user_data(POLL);
    let cancel = opcode::AsyncCancel2::new(CancelBuilder::fd(silent).all()).build();
    for entry in [poll, cancel] {
        // SAFETY: a poll and a cancel name no memory. The queue is empty and longer than this, so it cannot be full.
        let _ = unsafe { uring.submission().push(&entry) };
    }
    let limit = Timespec::from(PROBE);
    // Where such a cancel is not known, it has failed by now and the poll goes with the ring.
    let _ = uring.submitter().submit_with_args(2, &SubmitArgs::new().timespec(&limit));
    Ok(uring.completion().any(|completion| completion.user_data() == POLL && completion.result() == -libc::ECANCELED))
}
