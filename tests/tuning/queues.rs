//! Interrupts and queues of a card with four of each, on a tree of files.

use std::fs;
use std::os::unix::fs::symlink;

use crate::support::Tree;

/// A card eth0 with four queues, as its driver and the kernel show it, and one of the interrupts not a queue's.
fn card(names: [&str; 5]) -> Tree {
    let tree = Tree::new();
    tree.write("proc/sys/net/core/rps_sock_flow_entries", "0\n");
    let mut interrupts = String::from("           CPU0       CPU1       CPU2       CPU3\n");
    for (at, name) in names.iter().enumerate() {
        let irq = 40 + at;
        interrupts += &format!(" {irq}:          5          0          0          0   PCI-MSI-0000:00:05.0    {at}-edge      {name}\n");
        tree.write(&format!("sys/devices/pci0/msi_irqs/{irq}"), "msix\n");
        tree.write(&format!("proc/irq/{irq}/smp_affinity_list"), "0-3\n");
    }
    tree.write("proc/interrupts", &interrupts);
    for queue in 0..4 {
        tree.write(&format!("sys/class/net/eth0/queues/rx-{queue}/rps_cpus"), "0\n");
        tree.write(&format!("sys/class/net/eth0/queues/rx-{queue}/rps_flow_cnt"), "0\n");
        tree.write(&format!("sys/class/net/eth0/queues/tx-{queue}/xps_cpus"), "0\n");
    }
    symlink("../../../devices/pci0", tree.path("sys/class/net/eth0/device")).unwrap();
    // What has no card behind it is none: a bridge, the end of a container.
    tree.write("sys/class/net/br0/queues/rx-0/rps_flow_cnt", "0\n");
    tree
}

const MLX5: [&str; 5] = [
    "mlx5_async0@pci:0000:00:05.0",
    "mlx5_comp0@pci:0000:00:05.0",
    "mlx5_comp1@pci:0000:00:05.0",
    "mlx5_comp2@pci:0000:00:05.0",
    "mlx5_comp3@pci:0000:00:05.0",
];

#[test]
fn queue_i_goes_to_core_i_and_back_to_the_byte() {
    for names in [MLX5, ["eth0", "eth0-TxRx-0", "eth0-TxRx-1", "eth0-TxRx-2", "eth0-TxRx-3"]] {
        let tree = card(names);
        let before = tree.files();
        tree.run("check.sh", &["queues"]).ends(1).says("differs", &["queues/interrupts", "found 0-3 (4 times)", "wanted core"]);
        assert_eq!(tree.files(), before, "check.sh has changed something");
        tree.run("apply.sh", &["queues"]).ends(0);
        tree.has("proc/irq/40/smp_affinity_list", "0-3\n");
        for queue in 0..4 {
            tree.has(&format!("proc/irq/{}/smp_affinity_list", 41 + queue), &format!("{queue}\n"));
            tree.has(&format!("sys/class/net/eth0/queues/tx-{queue}/xps_cpus"), &format!("{:x}\n", 1 << queue));
            tree.has(&format!("sys/class/net/eth0/queues/rx-{queue}/rps_flow_cnt"), "8192\n");
            tree.has(&format!("sys/class/net/eth0/queues/rx-{queue}/rps_cpus"), "0\n");
        }
        tree.has("proc/sys/net/core/rps_sock_flow_entries", "32768\n");
        tree.has("sys/class/net/br0/queues/rx-0/rps_flow_cnt", "0\n");
        tree.run("check.sh", &["queues"]).ends(0);
        tree.run("revert.sh", &[]).ends(0);
        assert_eq!(tree.files(), before);
    }
}

#[test]
fn with_fewer_cores_queues_go_round_and_sending_is_left_to_the_driver() {
    let tree = card(MLX5);
    tree.run("apply.sh", &["queues", "--cores", "2-3"]).ends(0);
    for (irq, core) in [(41, "2\n"), (42, "3\n"), (43, "2\n"), (44, "3\n")] {
        tree.has(&format!("proc/irq/{irq}/smp_affinity_list"), core);
    }
    tree.has("sys/class/net/eth0/queues/tx-0/xps_cpus", "0\n");
    tree.run("check.sh", &["queues", "--cores", "2-3"]).ends(0).says("not here", &["queues/xps"]);
}

#[test]
fn a_virtual_cards_interrupts_are_those_of_its_parent() {
    let tree = card(["virtio0-config", "virtio0-input.0", "virtio0-output.0", "virtio0-input.1", "virtio0-output.1"]);
    fs::remove_file(tree.path("sys/class/net/eth0/device")).unwrap();
    tree.write("sys/devices/pci0/virtio0/uevent", "DRIVER=virtio_net\n");
    symlink("../../../devices/pci0/virtio0", tree.path("sys/class/net/eth0/device")).unwrap();
    tree.run("apply.sh", &["queues"]).ends(0);
    for (irq, core) in [(40, "0-3\n"), (41, "0\n"), (42, "0\n"), (43, "1\n"), (44, "1\n")] {
        tree.has(&format!("proc/irq/{irq}/smp_affinity_list"), core);
    }
}

#[test]
fn masks_of_many_cores_are_compared_by_what_they_mean() {
    let tree = card(MLX5);
    for (queue, mask) in [(0, "00000000,00000004\n"), (1, "00000000,00000008\n"), (2, "00000010,00000000\n"), (3, "00000000,00000020\n")] {
        tree.write(&format!("sys/class/net/eth0/queues/tx-{queue}/xps_cpus"), mask);
    }
    let apply = tree.run("apply.sh", &["queues", "--cores", "2,3,36,37"]).ends(0);
    apply.says("ok", &["tx-0/xps_cpus"]).says("ok", &["tx-1/xps_cpus"]).says("ok", &["tx-2/xps_cpus"]);
    apply.says("set", &["tx-3/xps_cpus", "-> 20,00000000"]);
    tree.run("revert.sh", &[]).ends(0);
    tree.has("sys/class/net/eth0/queues/tx-3/xps_cpus", "00000000,00000020\n");
}

#[test]
fn irqbalance_is_noticed_and_left_to_the_operator() {
    let tree = card(MLX5);
    tree.write("proc/812/comm", "irqbalance\n");
    tree.run("apply.sh", &["queues"]).ends(0).says("by hand", &["irqbalance", "systemctl disable --now irqbalance"]);
    tree.run("check.sh", &["queues"]).ends(1).says("differs", &["queues/irqbalance", "found running"]);
}
