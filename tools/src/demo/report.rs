//! The demo's closing words: what was sent, lost, repaired and resent, and how to do it by hand.

use serde_json::Value;

use super::display::{Display, seconds, size};
use super::image::{BLOCK_BYTES, Image};
use super::node::Node;
use super::story::{EXPORT, GROUP, Outcome, VOLUME};

/// What the two ends of the stream say of themselves in `ublk-admin status --json`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamCounters {
    /// Source symbols sent, by the primary.
    pub source_symbols: u64,
    /// Repair symbols sent with their block, by the primary.
    pub repair_symbols: u64,
    /// Symbols that the primary sent because they were asked for, or because nothing was heard.
    pub resent_symbols: u64,
    /// Blocks that the standby made whole by coding.
    pub repaired_blocks: u64,
    /// Source symbols that never arrived and were computed by the standby.
    pub repaired_symbols: u64,
}

/// All that the closing words are about.
#[derive(Debug)]
pub struct Facts<'a> {
    /// What was written.
    pub image: &'a Image,
    /// Written after the restart point, in bytes.
    pub scribbled_bytes: u64,
    /// What came of it.
    pub outcome: Outcome,
    /// The steps and their times.
    pub display: &'a Display,
}

/// Finds the stream's counters in the status of the sender and of the receiver.
pub fn stream_counters(primary: &Value, standby: &Value) -> StreamCounters {
    // The links have figures of the same names.
    let counter = |status, half, name| find(status, half).and_then(|counters| counters[name].as_u64()).unwrap_or(0);
    let sent = |name| counter(primary, "sent", name);
    let received = |name| counter(standby, "received", name);
    StreamCounters {
        source_symbols: sent("source_symbols"),
        repair_symbols: sent("repair_symbols"),
        resent_symbols: sent("resent_symbols"),
        repaired_blocks: received("repaired_blocks"),
        repaired_symbols: received("repaired_symbols"),
    }
}

/// The first value of this name, however deep.
pub fn find<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    match value {
        Value::Object(fields) => fields.get(name).or_else(|| fields.values().find_map(|inner| find(inner, name))),
        Value::Array(items) => items.iter().find_map(|inner| find(inner, name)),
        _ => None,
    }
}

/// Prints the closing words.
pub fn print(facts: &Facts<'_>) {
    println!("\nThe standby holds exactly the restart point; of what was written after it nothing is seen.\n");
    let written = facts.image.used_blocks.len() as u64 * u64::from(BLOCK_BYTES);
    row("written before / after", format!("{} / {}", size(written), size(facts.scribbled_bytes)));
    for (name, line) in ["first link, 1 % loss", "second link, 3 % loss"].iter().zip(&facts.outcome.lines) {
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
    let sent = facts.outcome.stream;
    row("packets of data", sent.source_symbols.to_string());
    row("packets of redundancy", sent.repair_symbols.to_string());
    row("repaired by coding", format!("{} packets of {} blocks", sent.repaired_symbols, sent.repaired_blocks));
    row("packets sent again", sent.resent_symbols.to_string());
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
    println!("\nBoth nodes run: south is the primary, north was started again and is fenced. To play with:");
    let demote = format!("demote {GROUP} --discard-fork");
    let point = format!("restart-point {GROUP} --label mine --wait");
    for (node, arguments, effect) in [
        (south, "status --watch", "role, pair, lag, links"),
        (north, "status", "the former primary"),
        (north, demote.as_str(), "makes it the standby; it is brought up to date"),
        (south, point.as_str(), "the next restart point"),
    ] {
        println!("  # {effect}\n  {}", node.command_line(arguments));
    }
    println!("  # a client\n  nbdinfo 'nbd+unix:///{EXPORT}?socket={}'", south.nbd_path().display());
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn counters_are_found_however_deep() {
        let primary = json!({"groups": [{"session": {"links": [{"repair_symbols": 6}], "sent": {
            "source_symbols": 10, "repair_symbols": 3, "resent_symbols": 1
        }, "received": {"repaired_blocks": 99}}}]});
        let standby = json!({"session": {"received": {"repaired_blocks": 2, "repaired_symbols": 4}}});
        let expected = StreamCounters {
            source_symbols: 10,
            repair_symbols: 3,
            resent_symbols: 1,
            repaired_blocks: 2,
            repaired_symbols: 4,
        };
        assert_eq!(stream_counters(&primary, &standby), expected);
        assert_eq!(stream_counters(&json!(null), &json!([])), StreamCounters::default());
    }
}
