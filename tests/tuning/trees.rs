//! Cores, huge pages, limits, the record and the flags, on trees of files.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::support::{Tree, said, script, settings, tuning};

fn governors(tree: &Tree, cores: std::ops::Range<u32>) {
    for core in cores {
        tree.write(&format!("sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor"), "schedutil\n");
        tree.write(&format!("sys/devices/system/cpu/cpu{core}/power/pm_qos_resume_latency_us"), "0\n");
    }
}

#[test]
fn cores_get_their_governor_and_latency_and_lose_them_again_to_the_byte() {
    let tree = Tree::new();
    governors(&tree, 0..4);
    let before = tree.files();
    let check = tree.run("check.sh", &["cpu"]).ends(1);
    check.says("differs", &["cpu/governor", "schedutil (4 times)", "wanted performance"]);
    assert_eq!(tree.files(), before, "check.sh has changed something");
    tree.run("apply.sh", &["cpu"]).ends(0).says("set", &["cpu3/cpufreq/scaling_governor", "schedutil -> performance"]);
    tree.has("sys/devices/system/cpu/cpu2/power/pm_qos_resume_latency_us", "20\n");
    tree.run("check.sh", &["cpu"]).ends(0).says("ok", &["cpu/governor", "performance (4 times)"]);
    tree.run("revert.sh", &[]).ends(0);
    assert_eq!(tree.files(), before);
    tree.run("revert.sh", &[]).ends(0).says("nothing to put back", &[]);
}

#[test]
fn only_the_cores_that_are_named_are_touched() {
    let tree = Tree::new();
    governors(&tree, 0..4);
    tree.run("apply.sh", &["cpu", "--cores", "1,3"]).ends(0);
    for (core, governor) in [(0, "schedutil\n"), (1, "performance\n"), (2, "schedutil\n"), (3, "performance\n")] {
        tree.has(&format!("sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor"), governor);
    }
}

#[test]
fn what_a_virtual_machine_lacks_is_not_here_and_no_error() {
    let tree = Tree::new();
    let before = tree.files();
    for section in ["cpu", "hugepages", "busypoll", "bigtcp", "congestion"] {
        let check = tree.run("check.sh", &[section, "--link", "100g"]).ends(0);
        assert!(check.lines("not here") > 0 && check.lines("differs") == 0, "{}", check.out);
        tree.run("apply.sh", &[section, "--link", "100g"]).ends(0);
    }
    assert_eq!(tree.files(), before);
}

#[test]
fn what_is_to_be_done_by_hand_is_said_and_left_alone() {
    let tree = Tree::new();
    tree.write("sys/devices/system/cpu/smt/active", "1\n");
    tree.run("check.sh", &["cpu"]).ends(0);
    tree.run("check.sh", &["cpu", "--link", "100g"])
        .ends(1)
        .says("differs", &["cpu/smt"])
        .says(" ", &["hand: one shard per physical core"]);
    tree.run("apply.sh", &["cpu", "--link", "100g"]).ends(0).says("by hand", &["smt/active"]);
    tree.has("sys/devices/system/cpu/smt/active", "1\n");
}

#[test]
fn of_huge_pages_the_chosen_word_is_what_counts() {
    let tree = Tree::new();
    let (enabled, defrag) = ("sys/kernel/mm/transparent_hugepage/enabled", "sys/kernel/mm/transparent_hugepage/defrag");
    tree.write(enabled, "[always] madvise never\n");
    tree.write(defrag, "always defer [defer+madvise] madvise never\n");
    tree.run("check.sh", &["hugepages"]).ends(1).says("differs", &["hugepages/thp ", "found always"]).says("ok", &["defer+madvise"]);
    tree.run("apply.sh", &["hugepages"]).ends(0);
    // The kernel makes a list with brackets of it; a file is what was written.
    tree.has(enabled, "madvise\n");
    tree.run("revert.sh", &[]).ends(0);
    tree.has(enabled, "always\n");
    tree.has(defrag, "always defer [defer+madvise] madvise never\n");
}

const LIMITS: &str = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max open files            1024                 20000                files     \n\
                      Max locked memory         8388608              8388608              bytes     \n";
const NOFILE: &str = "etc/security/limits.d/zhwkprox-nofile.conf";

#[test]
fn limits_get_a_file_and_lose_it_again() {
    let tree = Tree::new();
    tree.write("proc/self/limits", LIMITS);
    let before = tree.files();
    let check = tree.run("check.sh", &["limits"]).ends(1);
    check.says("differs", &["limits/nofile", "20000", "at least 1048576"]).says("ok", &["limits/memlock", "8192"]);
    tree.run("apply.sh", &["limits"]).ends(0).says("set", &["nofile", "from the next login on"]);
    let file = fs::read_to_string(tree.path(NOFILE)).unwrap();
    assert!(file.contains("\nroot hard nofile 1048576\n* hard nofile 1048576\n"), "{file}");
    tree.run("check.sh", &["limits"]).ends(0);
    tree.run("revert.sh", &[]).ends(0);
    let mut after = tree.files();
    after.retain(|path, _| before.contains_key(path));
    assert_eq!(after, before);
    assert!(!tree.path(NOFILE).exists());
}

#[test]
fn a_file_that_was_there_comes_back_even_after_a_boot() {
    let tree = Tree::new();
    tree.write("proc/self/limits", LIMITS);
    governors(&tree, 0..4);
    tree.write(NOFILE, "# ours\n* hard nofile 30000\n\n");
    tree.run("apply.sh", &["limits", "cpu"]).ends(0);
    // The boot has undone the governors, to something else than before, and not the file.
    tree.boot("second");
    for core in 0..4 {
        tree.write(&format!("sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor"), "ondemand\n");
    }
    let revert = tree.run("revert.sh", &[]).ends(0);
    assert!(revert.out.contains("from before the last boot"), "{}", revert.out);
    tree.has(NOFILE, "# ours\n* hard nofile 30000\n\n");
    tree.has("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "ondemand\n");
}

#[test]
fn what_was_there_after_a_boot_is_what_comes_back() {
    let tree = Tree::new();
    governors(&tree, 0..4);
    let governor = "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor";
    tree.run("apply.sh", &["cpu"]).ends(0);
    tree.boot("second");
    tree.write(governor, "ondemand\n");
    tree.run("apply.sh", &["cpu"]).ends(0);
    tree.has(governor, "performance\n");
    tree.run("revert.sh", &[]).ends(0);
    tree.has(governor, "ondemand\n");
}

#[test]
fn a_second_apply_does_not_take_the_first_ones_values_for_what_was_there() {
    let tree = Tree::new();
    tree.write("proc/sys/net/core/somaxconn", "128\n");
    let settings = settings("[net.core.somaxconn]\nkind sysctl\nrule at-least\nwant 4096\nwant@25g 8192\n");
    let folder = settings.path().to_str().unwrap();
    for (link, value) in [("10g", "4096\n"), ("10g", "4096\n"), ("100g", "8192\n")] {
        tree.run("apply.sh", &["some", "--settings", folder, "--link", link]).ends(0);
        tree.has("proc/sys/net/core/somaxconn", value);
    }
    tree.run("revert.sh", &[]).ends(0);
    tree.has("proc/sys/net/core/somaxconn", "128\n");
}

#[test]
fn fields_that_are_good_as_they_are_are_kept() {
    let tree = Tree::new();
    tree.write("proc/sys/net/ipv4/tcp_rmem", "8192\t131072\t6291456\n");
    tree.write("proc/sys/net/ipv4/ip_local_reserved_ports", "1985-1993,8080\n");
    tree.write("proc/sys/net/ipv4/tcp_notsent_lowat", "4294967295\n");
    tree.run("apply.sh", &["sockets", "--link", "25g"]).ends(0);
    tree.has("proc/sys/net/ipv4/tcp_rmem", "8192 131072 67108864\n");
    tree.has("proc/sys/net/ipv4/ip_local_reserved_ports", "1985-1993,8080,1080,1992\n");
    tree.has("proc/sys/net/ipv4/tcp_notsent_lowat", "262144\n");
    tree.run("check.sh", &["sockets", "--link", "25g"]).ends(0);
    tree.run("check.sh", &["sockets", "--link", "100g"]).ends(1).says("differs", &["tcp_rmem", "134217728"]).says("ok", &["lowat"]);
    tree.run("revert.sh", &[]).ends(0);
    tree.has("proc/sys/net/ipv4/tcp_rmem", "8192\t131072\t6291456\n");
    tree.has("proc/sys/net/ipv4/ip_local_reserved_ports", "1985-1993,8080\n");
}

#[test]
fn what_cannot_be_put_back_stays_in_the_record_and_comes_back_later() {
    let tree = Tree::new();
    governors(&tree, 0..2);
    let before = tree.files();
    tree.run("apply.sh", &["cpu"]).ends(0);
    // A file that can be read and that not even root can write.
    let governor = tree.path("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
    fs::remove_file(&governor).unwrap();
    symlink("/proc/sys/kernel/ostype", &governor).unwrap();
    tree.run("revert.sh", &[]).ends(1).says("FAILED", &["cpu0", "schedutil"]).says("back", &["cpu1"]).says("1 not put back", &[]);
    fs::remove_file(&governor).unwrap();
    fs::write(&governor, "performance\n").unwrap();
    tree.run("revert.sh", &[]).ends(0);
    assert_eq!(tree.files(), before);
}

#[test]
fn a_value_that_cannot_be_noted_is_not_changed() {
    let tree = Tree::new();
    governors(&tree, 0..1);
    // Neither is this a file, nor can root make it one.
    fs::create_dir_all(tree.path("var/lib/zhwkprox-tuning/record")).unwrap();
    let apply = tree.run("apply.sh", &["cpu"]);
    assert_eq!(apply.status, 1, "{}", apply.out);
    apply.says("FAILED", &["scaling_governor", "could not be noted"]);
    tree.has("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "schedutil\n");
}

#[test]
fn a_dry_run_says_what_it_would_do_and_does_nothing() {
    let tree = Tree::new();
    governors(&tree, 0..4);
    let before = tree.files();
    tree.run("apply.sh", &["cpu", "--dry-run"]).ends(0).says("would set", &["cpu0", "schedutil -> performance"]);
    assert_eq!(tree.files(), before);
    assert!(!tree.path("var").exists());
    tree.run("apply.sh", &["cpu"]).ends(0);
    let applied = tree.files();
    tree.run("revert.sh", &["--dry-run"]).ends(0).says("would set", &["cpu0", "performance -> schedutil"]);
    assert_eq!(tree.files(), applied);
}

#[test]
fn wrong_use_is_told_with_status_2_and_touches_nothing() {
    let tree = Tree::new();
    governors(&tree, 0..4);
    let before = tree.files();
    for (arguments, word) in [
        (&[][..], "which sections"),
        (&["cpus"], "there is no section cpus"),
        (&["cpu", "--link", "40g"], "--link is one of"),
        (&["cpu", "--cores", "a-b"], "expected numbers"),
        (&["cpu", "--fast"], "there is no flag --fast"),
        (&["cpu", "--link"], "--link needs a value"),
    ] {
        let apply = tree.run("apply.sh", arguments);
        assert_eq!((apply.status, apply.out.as_str()), (2, ""), "{arguments:?}: {}", apply.err);
        assert!(apply.err.starts_with("apply.sh: ") && apply.err.contains(word), "{arguments:?}: {}", apply.err);
    }
    assert_eq!(tree.run("revert.sh", &["cpu"]).status, 2);
    assert_eq!(tree.files(), before);
}

#[test]
fn two_at_once_are_refused() {
    let tree = Tree::new();
    governors(&tree, 0..4);
    fs::create_dir_all(tree.path("var/lib/zhwkprox-tuning")).unwrap();
    let lock = fs::File::create(tree.path("var/lib/zhwkprox-tuning/lock")).unwrap();
    lock.lock().unwrap();
    let apply = tree.run("apply.sh", &["cpu"]);
    assert!(apply.status == 2 && apply.err.contains("another one is at work"), "{apply:?}");
    tree.has("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "schedutil\n");
    drop(lock);
    tree.run("apply.sh", &["cpu"]).ends(0);
}

#[test]
fn without_root_apply_and_revert_refuse_and_check_works() {
    // A copy, for the user may not reach the checkout.
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    assert!(Command::new("cp").arg("-r").arg(tuning()).arg(folder.path()).status().unwrap().success());
    let is_root = fs::metadata("/proc/self").unwrap();
    let is_root = std::os::unix::fs::MetadataExt::uid(&is_root) == 0;
    let run = |name: &str, arguments: &[&str]| {
        let mut command = script(name);
        if is_root {
            command = Command::new(folder.path().join("tuning").join(name));
            command.uid(61_010).gid(61_010);
        }
        said(command.current_dir("/").arg("--state").arg(folder.path().join("state")).args(arguments))
    };
    fs::create_dir_all(folder.path().join("state")).unwrap();
    fs::write(folder.path().join("state/record"), "boot|other\n").unwrap();
    for (name, arguments) in [("apply.sh", &["sockets"][..]), ("revert.sh", &[])] {
        let refused = run(name, arguments);
        assert!(refused.status == 2 && refused.err.contains("only root can do this"), "{name}: {refused:?}");
    }
    assert_ne!(run("check.sh", &[]).status, 2);
    assert_eq!(run("apply.sh", &["sockets", "--dry-run"]).status, 0);
}
