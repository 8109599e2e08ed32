//! What a user is told when io_uring cannot be had, on real processes in which the kernel really refuses it: under a seccomp filter,
//! and under a limit of locked memory. Works as any user.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

mod binary;
mod jail;
mod ladder;

/// A copy of a program that any user may reach and run. Written by another process: a file that this one had open for writing could still
/// be open in a child that another test is just starting, and the kernel does not run such a file (ETXTBSY).
fn copy_for_everybody(program: &Path, folder: &Path) -> PathBuf {
    let copy = folder.join("program");
    let status = std::process::Command::new("cp").arg(program).arg(&copy).status().unwrap();
    assert!(status.success(), "cp {} ended with {status}", program.display());
    for path in [folder, &copy] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    copy
}
