//! Answers for people.

use serde_json::Value;
use std::{
    fmt::Write,
    time::{SystemTime, UNIX_EPOCH},
};

/// One group's status, or several.
pub fn status(value: &Value) -> String {
    match value {
        Value::Array(groups) if groups.is_empty() => "No groups; make one with: ublk-admin group create NAME".into(),
        Value::Array(groups) => groups.iter().map(group).collect::<Vec<_>>().join("\n"),
        one => group(one),
    }
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or("-")
}

fn number(value: &Value, field: &str) -> u64 {
    value[field].as_u64().unwrap_or(0)
}

fn place(value: &Value) -> String {
    let epoch = number(value, "epoch");
    format!("{}.{}:{}", epoch >> 32, epoch & 0xffff_ffff, number(value, "seq"))
}

fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut amount = bytes as f64;
    let mut unit = 0;
    while amount >= 1024.0 && unit < UNITS.len() - 1 {
        amount /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{amount:.1} {}", UNITS[unit]) }
}

/// How long ago, of microseconds since 1970.
fn age(time: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64;
    match now.saturating_sub(time) / 1_000_000 {
        seconds @ 0..120 => format!("{seconds} s ago"),
        seconds @ 120..7_200 => format!("{} min ago", seconds / 60),
        seconds @ 7_200..172_800 => format!("{} h ago", seconds / 3_600),
        seconds => format!("{} days ago", seconds / 86_400),
    }
}

/// A group that could not be opened: nothing else is known of it.
fn unopened(value: &Value) -> Option<String> {
    let (group, reason) = (text(value, "group"), value["not_opened"].as_str()?);
    Some(format!("{group}: NOT OPENED: {reason}\n  mend that, then: ublk-admin group reopen {group}"))
}

fn group(value: &Value) -> String {
    if let Some(unopened) = unopened(value) {
        return unopened;
    }
    let mut out = String::new();
    let pair = &value["pair"];
    let cause = pair["cause"].as_str().map(|cause| format!(" ({cause})")).unwrap_or_default();
    let connected = if value["connected"] == true { "connected" } else { "not connected" };
    let peer = match value["peer_name"].as_str() {
        Some(name) => format!(", peer {name} {connected}"),
        None if value["peer"].is_null() => String::new(),
        None => ", peer NOT CONFIGURED: no [[peer]] has its key; nothing is sent".to_owned(),
    };
    // Writing to a string does not fail.
    let _ = writeln!(out, "{}: {}, {}{cause}{peer}", text(value, "group"), text(value, "role"), text(pair, "state"));
    let policy = match (text(value, "level"), text(value, "without_peer")) {
        ("remote", policy) => format!(", without the peer: {policy}"),
        _ => String::new(),
    };
    let _ = writeln!(out, "  level       {}{policy}", text(value, "level"));
    if value["writes_wait"] == true {
        let _ = writeln!(
            out,
            "  WRITES WAIT for the peer; to go on without it: ublk-admin level {} remote --without-peer continue",
            text(value, "group")
        );
    }
    let _ = writeln!(out, "  last record {}", place(&value["head"]));
    let lease = &value["lease"];
    if lease.is_object() {
        let (seconds, left) = (number(lease, "millis") / 1000, number(lease, "left_millis"));
        let how = match (text(value, "role"), left) {
            ("primary", 0) => format!(
                "LOST: nothing is answered until the standby grants another; if that one surely serves nothing, nor will promote itself: ublk-admin fence {} none --force",
                text(value, "group")
            ),
            ("primary", _) => "held".to_owned(),
            (_, 0) => "not promised".to_owned(),
            (_, left) => format!("promised for another {} s: promotion waits", left.div_ceil(1000)),
        };
        let _ = writeln!(out, "  lease       {seconds} s, {how}");
    }
    let takeover = &value["takeover"];
    if takeover.is_object() {
        let state = if takeover["is_armed"] == true { "" } else { ", not now: it is no standby with a leased primary" };
        let target = if takeover["to_latest"] == true { "the latest state" } else { "the last restart point" };
        let seconds = number(takeover, "after_millis") / 1000;
        let _ = writeln!(out, "  promotes itself to {target} after {seconds} s of silence{state}");
    }
    if value["policy"] == "delayed" {
        let how = if value["delay_given_up"] == true {
            ", given up until the next restart point: the journal is half full"
        } else {
            ""
        };
        let _ = writeln!(out, "  policy      delayed{how}");
    }
    if value["copying"] == true {
        let _ = writeln!(out, "  a copy is under way: until it ends the latest state is not consistent");
    }
    let lag = &value["lag"];
    if value["role"] == "primary" && !value["peer"].is_null() {
        let seconds = number(lag, "micros") as f64 / 1e6;
        let _ = writeln!(
            out,
            "  lag         {seconds:.3} s, {} records, {}",
            number(lag, "records"),
            size(number(lag, "bytes"))
        );
        let _ = writeln!(out, "  to be copied {}", size(number(value, "dirty_bytes")));
    }
    let verifying = &value["verifying"];
    if verifying.is_object() {
        let _ = writeln!(
            out,
            "  verifying   {} of {} compared, {} differ",
            size(number(verifying, "done")),
            size(number(verifying, "total")),
            size(number(verifying, "differing"))
        );
    }
    let point = &value["restart_point"];
    if point.is_object() {
        let label = label(point);
        let what = match number(point, "generation") {
            0 => "kept is the state before the copy".into(),
            generation => format!("restart point {generation}{label}"),
        };
        let _ = writeln!(out, "  {what} at {}, {}", place(&point["at"]), age(number(point, "time")));
    }
    let others =
        value["generations"].as_array().into_iter().flatten().filter(|kept| kept["kind"] != "last-restart-point");
    let names: Vec<&str> = others.filter(|kept| kept["kind"] != "before-copy").map(|kept| text(kept, "name")).collect();
    if !names.is_empty() {
        let _ = writeln!(out, "  kept too: {} (ublk-admin generation list {})", names.join(", "), text(value, "group"));
    }
    let trial = &value["trial"];
    if trial.is_object() {
        let (name, written) = (text(trial, "generation"), size(number(trial, "written_bytes")));
        let _ = writeln!(
            out,
            "  TRIAL of generation {name}: {written} written; end it with: ublk-admin failover {} --end",
            text(value, "group")
        );
    }
    let preparing = match number(value, "journal_unprepared") {
        0 => String::new(),
        left => format!("; new, {} still to be written with zeroes", size(left)),
    };
    let _ = writeln!(
        out,
        "  journal     {} of {} in use{preparing}",
        size(number(value, "journal_used")),
        size(number(value, "journal_size"))
    );
    if let Some(reason) = value["stopped"].as_str() {
        let _ = writeln!(out, "  STOPPED     {reason}");
    }
    let fork = &value["fork"];
    if fork.is_object() {
        let (group, name) = (text(value, "group"), text(fork, "name"));
        let count = number(fork, "record_count");
        let _ = writeln!(out, "  FENCED      {name}: {count} records after {} exist only here", place(&fork["after"]));
        let _ = writeln!(out, "              read them with: ublk-admin volume export {group} --read-only");
        let _ = writeln!(
            out,
            "              make this node the standby and keep them as {name} with: ublk-admin demote {group}"
        );
        let _ = writeln!(out, "              give them up with: ublk-admin demote {group} --discard-fork");
    }
    out += &volumes(value);
    out += &session(&value["session"]);
    out.truncate(out.trim_end().len());
    out
}

fn label(value: &Value) -> String {
    let label = value["label"].as_str().filter(|label| !label.is_empty());
    label.map(|label| format!(" \"{label}\"")).unwrap_or_default()
}

/// What a node keeps, one a line.
pub fn generations(value: &Value) -> String {
    let mut out = String::new();
    for kept in value.as_array().into_iter().flatten() {
        let what = match text(kept, "kind") {
            "last-restart-point" => ", the last restart point",
            "former-restart-point" => ", no part of the group's history any more",
            "fork" => ", what only this node has of a former epoch",
            "before-copy" => ", the state before the copy",
            _ => "",
        };
        let in_use = match (kept["in_use"] == true, kept["applied"] == true) {
            (true, _) => ", in use",
            (false, true) => "",
            (false, false) => ", not applied yet",
        };
        let (when, own) = (age(number(kept, "time")), size(number(kept, "own_bytes")));
        let _ = writeln!(
            out,
            "{:>10}  {when} at {}{}{what}{in_use}; {own} of its own",
            text(kept, "name"),
            place(&kept["at"]),
            label(kept)
        );
    }
    if out.is_empty() { "Nothing is kept: no restart point has come yet".into() } else { out.trim_end().into() }
}

/// The volumes of a group.
pub fn volumes(value: &Value) -> String {
    let mut out = String::new();
    for volume in value["volumes"].as_array().into_iter().flatten() {
        let _ = writeln!(
            out,
            "  volume {}/{}: {}, {} of {} pool blocks in use, pool {}",
            text(value, "group"),
            text(volume, "name"),
            size(number(volume, "size")),
            number(volume, "pool_used_count"),
            number(volume, "pool_block_count"),
            text(volume, "pool_path")
        );
        if let Some(device) = volume["attached"]["device"].as_str() {
            let _ = writeln!(out, "    attached as {device}, {}", text(&volume["attached"], "name"));
        }
    }
    out
}

fn session(value: &Value) -> String {
    let mut out = String::new();
    for link in value["links"].as_array().into_iter().flatten() {
        let rtt = link["rtt_micros"].as_u64().map_or("-".into(), |rtt| format!("{:.1} ms", rtt as f64 / 1e3));
        let loss = link["loss"].as_f64().map_or("-".into(), |loss| format!("{:.2} %", loss * 100.0));
        let rate = link["rate"].as_u64().map_or("-".into(), |rate| format!("{:.1} Mbit/s", rate as f64 * 8e-6));
        let _ = writeln!(
            out,
            "  link {}: {}, RTT {rtt}, loss {loss}, at most {rate}; {} sent in {} packets",
            text(link, "name"),
            text(link, "state"),
            size(number(link, "sent_bytes")),
            number(link, "sent_datagrams")
        );
    }
    out += &mode(value);
    if value.is_object() {
        let (sent, received) = (&value["sent"], &value["received"]);
        let _ = writeln!(
            out,
            "  sent {} frames: {} source, {} repair, {} resent symbols; received {} frames, {} blocks repaired by coding",
            number(sent, "frames"),
            number(sent, "source_symbols"),
            number(sent, "repair_symbols"),
            number(sent, "resent_symbols"),
            number(received, "frames"),
            number(received, "repaired_blocks")
        );
    }
    out
}

/// What goes over which link, and why.
fn mode(value: &Value) -> String {
    let links = || value["links"].as_array().into_iter().flatten();
    let how = match text(value, "mode") {
        "-" => return String::new(),
        "split" => "what is sent over the first link, as much repair over the second".into(),
        "mirror" => "everything over both links".into(),
        _ => {
            let repair: Vec<String> = links()
                .map(|link| {
                    format!("{} repair symbols for 32 on {}", number(link, "repair_symbols"), text(link, "name"))
                })
                .collect();
            let far = links().find(|link| link["is_farther"] == true);
            let far =
                far.map(|link| format!("; {} is farther and takes what the other has no room for", text(link, "name")));
            format!("each link carries what it can, {}{}", repair.join(", "), far.unwrap_or_default())
        }
    };
    format!("  mode {}: {how}\n", text(value, "mode"))
}

/// The node.
pub fn node(value: &Value) -> String {
    let mut out = format!("{}  {}\n", text(value, "name"), text(value, "key"));
    for peer in value["peers"].as_array().into_iter().flatten() {
        let up = if peer["session"]["up"] == true { "session up" } else { "no session" };
        let (presence, since) = (text(peer, "presence"), age(number(peer, "since")));
        let _ = writeln!(out, "peer {}: {presence} since {}, {up}", text(peer, "name"), since.trim_end_matches(" ago"));
        out += &session(&peer["session"]);
    }
    for group in value["not_opened"].as_array().into_iter().flatten().filter_map(unopened) {
        let _ = writeln!(out, "group {group}");
    }
    out.truncate(out.trim_end().len());
    out
}

/// Events, one a line.
pub fn events(value: &Value) -> String {
    let mut out = String::new();
    for event in value.as_array().into_iter().flatten() {
        let _ = write!(out, "{:>12}  {}", age(number(event, "time")), text(event, "event"));
        for (name, value) in event.as_object().into_iter().flatten() {
            if name != "time" && name != "event" {
                let _ = write!(out, " {name}={}", value.as_str().map_or_else(|| value.to_string(), str::to_owned));
            }
        }
        out.push('\n');
    }
    if out.is_empty() { "Nothing has changed yet".into() } else { out.trim_end().into() }
}

/// Any other answer.
pub fn answer(value: &Value) -> String {
    if let Some(done) = value["done"].as_str() {
        return done.to_owned();
    }
    let point = &value["restart-point"];
    if point.is_object() {
        return format!("Restart point {} declared at {}", number(point, "generation"), place(&point["at"]));
    }
    let promoted = &value["promoted"];
    if promoted.is_object() {
        let target = match promoted["generation"].as_u64() {
            None => "the latest state".into(),
            Some(0) => "the state before the copy".into(),
            Some(generation) => format!("restart point {generation}"),
        };
        return format!(
            "This node is the primary now, at {target} ({}); {} later records are not part of it",
            place(&promoted["at"]),
            number(promoted, "dropped_record_count")
        );
    }
    let verified = &value["verified"];
    if verified.is_object() {
        return verification(verified);
    }
    value.to_string()
}

fn verification(value: &Value) -> String {
    let (compared, differing) = (size(number(value, "compared_bytes")), number(value, "differing_bytes"));
    if differing == 0 {
        return format!("{compared} compared, all equal");
    }
    let mut out = format!("{compared} compared, {} differ", size(differing));
    if value["mending"] == true {
        out += " and are being copied";
    }
    let ranges = value["differing"].as_array().map(Vec::as_slice).unwrap_or_default();
    for range in ranges.iter().take(20) {
        let (offset, bytes) = (number(range, "offset"), number(range, "size"));
        let _ = write!(out, "\n  volume {} from byte {offset}, {bytes} bytes", number(range, "volume"));
    }
    if ranges.len() > 20 {
        let _ = write!(out, "\n  and {} more ranges (--json lists them)", ranges.len() - 20);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_peer_that_is_not_configured_is_shown() {
        let shown = |peer: Value, name: Value| {
            let lines =
                group(&json!({"group": "db", "role": "primary", "peer": peer, "peer_name": name, "connected": false}));
            (
                lines.contains("peer NOT CONFIGURED"),
                lines.contains("peer berlin not connected"),
                lines.contains("  lag "),
            )
        };
        assert_eq!(shown(Value::Null, Value::Null), (false, false, false));
        assert_eq!(shown(json!("key"), json!("berlin")), (false, true, true));
        assert_eq!(shown(json!("key"), Value::Null), (true, false, true));
    }
}
