//! The demo's closing words: what was sent, lost, repaired and resent, and how to do it by hand.

use serde_json::Value;

use super::display::{Display, seconds, size};
use super::image::{BLOCK_BYTES, Image};
use super::node::Node;
use super::story::{EXPORT, GROUP, VOLUME};
use crate::emulator::Statistics;

/// What the stream says of itself in `ublk-admin status --json`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamCounters {
    /// Source symbols sent.
    pub source_symbols: u64,
    /// Repair symbols sent with their block.
    pub repair_symbols: u64,
    /// Repair symbols sent because they were asked for.
    pub resent_symbols: u64,
    /// Blocks that were whole again by coding.
    pub blocks_repaired: u64,
    /// Blocks that were whole again by asking.
    pub blocks_resent: u64,
}

/// All that the closing words are about.
#[derive(Debug)]
pub struct Facts<'a> {
    /// What was written.
    pub image: &'a Image,
    /// Written after the restart point, in bytes.
    pub scribbled_bytes: u64,
    /// What the two lines did.
    pub lines: [Statistics; 2],
    /// What the stream did.
    pub sent: StreamCounters,
    /// The steps and their times.
    pub display: &'a Display,
}

/// Finds the stream's counters in a status.
pub fn stream_counters(status: &Value) -> StreamCounters {
    let number = |name: &str| find(status, name).unwrap_or(0);
    StreamCounters {
        source_symbols: number("source_symbols"),
        repair_symbols: number("repair_symbols"),
        resent_symbols: number("resent_symbols"),
        blocks_repaired: number("blocks_repaired"),
        blocks_resent: number("blocks_resent"),
    }
}

/// The first number of this name, however deep.
fn find(value: &Value, name: &str) -> Option<u64> {
    match value {
        Value::Object(fields) => fields
            .get(name)
            .and_then(Value::as_u64)
            .or_else(|| fields.values().find_map(|inner| find(inner, name))),
        Value::Array(items) => items.iter().find_map(|inner| find(inner, name)),
        _ => None,
    }
}

/// Prints the closing words.
pub fn print(facts: &Facts<'_>) {
    println!("\nThe standby holds exactly the restart point; nothing written after it is seen.\n");
    let written = facts.image.used_blocks.len() as u64 * u64::from(BLOCK_BYTES);
    row(
        "written before / after",
        format!("{} / {}", size(written), size(facts.scribbled_bytes)),
    );
    for (name, line) in ["first link, 1 % loss", "second link, 3 % loss"]
        .iter()
        .zip(&facts.lines)
    {
        let there = line.a_to_b;
        row(
            name,
            format!(
                "{} packets ({}) sent, {} lost, {} of them while cut",
                there.taken,
                size(there.taken_bytes),
                there.lost(),
                there.lost_cut
            ),
        );
    }
    let sent = facts.sent;
    row("packets of data", sent.source_symbols.to_string());
    row("packets of redundancy", sent.repair_symbols.to_string());
    row(
        "blocks repaired by coding",
        sent.blocks_repaired.to_string(),
    );
    row(
        "packets sent again",
        format!("{} for {} blocks", sent.resent_symbols, sent.blocks_resent),
    );
    row("in all", seconds(facts.display.elapsed()));
}

fn row(name: &str, value: String) {
    println!("  {name:<28}{value}");
}

/// Prints how to do it with two real machines.
pub fn print_by_hand() {
    println!(
        "\nBy hand, on two machines (docs/operating.md has the rest):\n\
         \x20 ublk-admin key                                         on both: a line for the other's holdfast.toml\n\
         \x20 ublk-admin group create {GROUP}                          on the primary\n\
         \x20 ublk-admin volume create {GROUP} {VOLUME} --size 1GiB\n\
         \x20 ublk-admin pair create {GROUP} --peer south --wait\n\
         \x20 nbdcopy image.ext4 'nbd+unix:///{EXPORT}?socket=…/nbd.sock'\n\
         \x20 ublk-admin restart-point {GROUP} --label image --wait\n\
         \x20 ublk-admin promote {GROUP}                               on the standby, when the primary is gone\n\
         Or: tools/demo --keep, to play with these two nodes."
    );
}

/// Prints the commands for the nodes that are left running.
pub fn print_commands(north: &Node, south: &Node) {
    println!("\nTo play with:");
    for (node, arguments) in [
        (south, "status --watch"),
        (south, "node status"),
        (north, "status"),
    ] {
        println!("  {}", node.command_line(arguments));
    }
    println!(
        "  nbdinfo 'nbd+unix:///{EXPORT}?socket={}'",
        south.nbd_path().display()
    );
}
