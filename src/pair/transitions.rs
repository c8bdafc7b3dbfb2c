//! The pair's states as one table: what leads from each to which, and what holds then. A primary takes no other way
//! (every change of its state asserts that where assertions are on, as in all tests), and docs/pair.md shows this table.

use super::PairState;
use alloc::{format, string::String};

/// Who causes a transition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// A command.
    Operator,
    /// What the peer says or has.
    Peer,
    /// The primary itself.
    Primary,
}

/// A way from one state to another, as the primary sees it. States are named without the cause of a suspension.
#[derive(Clone, Copy, Debug)]
pub struct Transition {
    /// From where.
    pub from: &'static str,
    /// To where.
    pub to: &'static str,
    /// Who causes it.
    pub by: By,
    /// When.
    pub when: &'static str,
    /// What holds from then on.
    pub promise: &'static str,
}

const fn way(from: &'static str, to: &'static str, by: By, when: &'static str, promise: &'static str) -> Transition {
    Transition { from, to, by, when, promise }
}

use By::{Operator, Peer, Primary};

/// See the module.
pub const TRANSITIONS: &[Transition] = &[
    way("simplex", "initial-copy", Operator, "`pair create`", "every change is sent or noted from now on"),
    way(
        "simplex",
        "duplex",
        Operator,
        "`promote` of a standby",
        "what the peer lacks is in the journal, or it is copied when it greets",
    ),
    way("initial-copy", "duplex", Peer, "the copy's end is durable there", "the standby holds a state of the primary"),
    way("initial-copy", "suspended", Operator, "`pair suspend --now`", "the next copy compares everything"),
    way(
        "initial-copy",
        "suspended",
        Primary,
        "the journal is nearly full, or something cannot be read",
        "the next copy compares everything",
    ),
    way("duplex", "suspending", Operator, "`pair suspend`", "what was written before the command is still sent"),
    way("duplex", "suspended", Operator, "`pair suspend --now`", "what is not acknowledged is noted"),
    way(
        "duplex",
        "suspended",
        Primary,
        "the journal is nearly full, or something cannot be read",
        "what is not acknowledged is noted; service goes on",
    ),
    way(
        "duplex",
        "duplex-pending",
        Peer,
        "it lacks what the journal no longer has, or has what is no part of the history",
        "what both wrote is noted and copied",
    ),
    way(
        "duplex",
        "suspended",
        Operator,
        "`pair verify --mend` found a difference",
        "what differs and what is not acknowledged is noted; it is copied as soon as the peer greets",
    ),
    way("duplex", "initial-copy", Peer, "nothing is known of what it holds", "everything is compared"),
    way(
        "suspending",
        "suspended",
        Primary,
        "the peer has what was written before the command, or is lost",
        "as for `--now`",
    ),
    way(
        "suspending",
        "duplex",
        Primary,
        "the daemon was started anew",
        "the command is forgotten; it was not answered",
    ),
    way(
        "suspended",
        "suspended",
        Operator,
        "`pair resume` while the peer is away; `pair suspend`",
        "resumed when the peer comes, or not",
    ),
    way(
        "suspended",
        "duplex-pending",
        Peer,
        "it greets, and no command forbids it",
        "the standby keeps its restart point until the copy has ended",
    ),
    way(
        "suspended",
        "initial-copy",
        Peer,
        "it greets, and nothing is known of what it holds",
        "the standby keeps its restart point until the copy has ended",
    ),
    way(
        "duplex-pending",
        "duplex",
        Peer,
        "the copy's end is durable there",
        "the standby holds a state of the primary",
    ),
    way(
        "duplex-pending",
        "initial-copy",
        Peer,
        "it greets, and nothing is known of what it holds",
        "everything is compared",
    ),
    way("duplex-pending", "suspended", Operator, "`pair suspend --now`", "what is not yet copied stays noted"),
    way(
        "duplex-pending",
        "suspended",
        Primary,
        "the journal is nearly full, or something cannot be read",
        "what is not yet copied stays noted",
    ),
];

impl PairState {
    /// Its name, without the cause of a suspension.
    pub fn name(self) -> &'static str {
        match self {
            Self::Simplex => "simplex",
            Self::InitialCopy => "initial-copy",
            Self::Duplex => "duplex",
            Self::Suspending => "suspending",
            Self::Suspended(_) => "suspended",
            Self::DuplexPending => "duplex-pending",
        }
    }

    /// Whether the table has a way from this state to another one. `pair delete` leads from every state to simplex.
    pub fn leads_to(self, next: Self) -> bool {
        let (from, to) = (self.name(), next.name());
        from == to || next == Self::Simplex || TRANSITIONS.iter().any(|way| way.from == from && way.to == to)
    }
}

/// The table as Markdown.
pub fn table() -> String {
    let mut text = String::from("| from | to | by | when | then |\n| --- | --- | --- | --- | --- |\n");
    for way in TRANSITIONS {
        let by = match way.by {
            Operator => "operator",
            Peer => "peer",
            Primary => "primary",
        };
        text += &format!("| {} | {} | {by} | {} | {} |\n", way.from, way.to, way.when, way.promise);
    }
    text += "| any | simplex | operator | `pair delete` | the bitmap is empty; the standby stays as it is and can be promoted by force |\n";
    text
}
