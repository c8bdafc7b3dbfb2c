//! Histories that were possible are accepted, and forged ones are rejected: each promise is broken once.

use super::{
    super::history::{Action, History, Outcome, Reign, State, Value, View, decode, encode},
    check,
};

const SECTORS: usize = 4;
const ZERO: Value = Value::Zero;

fn begun() -> History {
    let history = History::default();
    reign(&history, 0, vec![ZERO; SECTORS]);
    history
}

fn reign(history: &History, node: usize, sectors: Vec<Value>) {
    history.lock().reigns.push(Reign { node, base: vec![sectors], closed: None });
}

fn last(history: &History) -> usize {
    history.lock().reigns.len() - 1
}

fn send(history: &History, sector: usize, tag: u64) -> usize {
    history.send(last(history), 0, (sector, 1), Action::Write(tag))
}

fn write(history: &History, sector: usize, tag: u64) {
    let number = send(history, sector, tag);
    history.answer(number, &[]);
}

fn read(history: &History, sector: usize, value: Value) {
    let number = history.send(last(history), 0, (sector, 1), Action::Read(Vec::new()));
    let bytes = match value {
        Value::Tag(tag) => encode(tag, 0, sector, 1),
        _ => vec![0; 512],
    };
    history.answer(number, &bytes);
}

fn die(history: &History) {
    let mut record = history.lock();
    let at = record.tick();
    record.deaths.push((0, at));
}

fn sees(history: &History, from: u64, to: u64, sectors: [Value; SECTORS]) {
    let state: State = vec![sectors.to_vec()];
    let view = View { label: "a view".into(), reign: 0, from, to, received: true, name: None, state };
    history.lock().views.push(view);
}

#[track_caller]
fn accepted(history: &History) {
    check(&history.lock()).unwrap();
}

#[track_caller]
fn rejected(history: &History, why: &str) {
    let error = check(&history.lock()).expect_err("it was accepted");
    assert!(format!("{error:#}").contains(why), "{error:#}");
}

use Value::Tag;

#[test]
fn what_is_written_is_read() {
    let history = begun();
    write(&history, 0, 1);
    read(&history, 0, Tag(1));
    read(&history, 1, ZERO);
    accepted(&history);
}

#[test]
fn a_lost_write_is_rejected() {
    let history = begun();
    write(&history, 0, 1);
    read(&history, 0, ZERO);
    rejected(&history, "no order explains");
}

#[test]
fn a_stale_read_is_rejected() {
    let history = begun();
    write(&history, 0, 1);
    write(&history, 0, 2);
    read(&history, 0, Tag(1));
    rejected(&history, "no order explains");
}

#[test]
fn what_was_never_written_is_rejected() {
    let history = begun();
    write(&history, 0, 1);
    read(&history, 1, Tag(1));
    rejected(&history, "no order explains");
}

#[test]
fn a_torn_sector_is_no_value() {
    let mut bytes = encode(7, 1, 3, 2);
    assert_eq!(decode(&bytes, 1, 3), [Tag(7), Tag(7)]);
    assert_eq!(decode(&bytes, 1, 4), [Value::Torn, Value::Torn], "another place");
    assert_eq!(decode(&bytes, 0, 3), [Value::Torn, Value::Torn], "another volume");
    bytes[700..1024].fill(0);
    assert_eq!(decode(&bytes, 1, 3), [Tag(7), Value::Torn]);
    let history = begun();
    write(&history, 0, 1);
    let number = history.send(0, 0, (0, 1), Action::Read(Vec::new()));
    let mut bytes = encode(1, 0, 0, 1);
    bytes[256..].fill(0);
    history.answer(number, &bytes);
    rejected(&history, "no order explains");
}

#[test]
fn writes_at_once_have_any_order_but_only_one() {
    let history = begun();
    let (one, two) = (send(&history, 0, 1), send(&history, 0, 2));
    history.answer(two, &[]);
    history.answer(one, &[]);
    read(&history, 0, Tag(2));
    accepted(&history);
    read(&history, 0, Tag(1));
    rejected(&history, "no order explains");
}

#[test]
fn an_unanswered_write_is_there_or_not_once_its_daemon_is_dead() {
    let history = begun();
    write(&history, 0, 1);
    send(&history, 0, 2);
    read(&history, 0, Tag(1));
    die(&history);
    read(&history, 0, Tag(2));
    read(&history, 0, Tag(2));
    accepted(&history);
}

#[test]
fn what_is_read_of_a_write_under_way_is_no_promise() {
    let history = begun();
    write(&history, 0, 1);
    send(&history, 0, 2);
    read(&history, 0, Tag(2));
    die(&history);
    read(&history, 0, Tag(1));
    accepted(&history);
    read(&history, 0, Tag(2));
    rejected(&history, "no order explains");
}

#[test]
fn a_resurrected_write_is_rejected() {
    let history = begun();
    write(&history, 0, 1);
    send(&history, 0, 2);
    die(&history);
    read(&history, 0, Tag(1));
    read(&history, 0, Tag(2));
    rejected(&history, "no order explains");
}

#[test]
fn a_write_that_goes_away_again_is_rejected() {
    let history = begun();
    write(&history, 0, 1);
    send(&history, 0, 2);
    die(&history);
    read(&history, 0, Tag(2));
    read(&history, 0, Tag(1));
    rejected(&history, "no order explains");
}

#[test]
fn a_refused_write_is_there_or_not() {
    for shown in [ZERO, Tag(1)] {
        let history = begun();
        let number = send(&history, 0, 1);
        history.refuse(number, 28);
        read(&history, 0, shown);
        accepted(&history);
    }
    let history = begun();
    let number = send(&history, 0, 1);
    history.refuse(number, 22);
    rejected(&history, "an error that no page documents");
}

#[test]
fn zeroes_are_a_value_like_others() {
    let history = begun();
    write(&history, 0, 1);
    let number = history.send(0, 0, (0, 2), Action::Zero);
    history.answer(number, &[]);
    read(&history, 0, ZERO);
    accepted(&history);
    read(&history, 0, Tag(1));
    rejected(&history, "no order explains");
}

#[test]
fn a_standby_shows_a_prefix() {
    let history = begun();
    (1..=4).for_each(|tag| write(&history, tag as usize - 1, tag));
    let now = history.tick();
    sees(&history, 0, now, [Tag(1), Tag(2), ZERO, ZERO]);
    sees(&history, 0, now, [Tag(1), Tag(2), Tag(3), ZERO]);
    accepted(&history);
}

#[test]
fn a_reordered_standby_is_rejected() {
    let history = begun();
    (1..=4).for_each(|tag| write(&history, tag as usize - 1, tag));
    let now = history.tick();
    sees(&history, 0, now, [Tag(1), ZERO, Tag(3), ZERO]);
    rejected(&history, "shows no state of reign 0");
}

#[test]
fn a_standby_that_goes_back_is_rejected() {
    let history = begun();
    (1..=4).for_each(|tag| write(&history, tag as usize - 1, tag));
    let now = history.tick();
    sees(&history, 0, now, [Tag(1), Tag(2), Tag(3), ZERO]);
    sees(&history, 0, now, [Tag(1), ZERO, ZERO, ZERO]);
    rejected(&history, "had shown");
}

#[test]
fn a_standby_may_lack_what_was_under_way() {
    let history = begun();
    let slow = send(&history, 0, 1);
    write(&history, 1, 2);
    history.answer(slow, &[]);
    let now = history.tick();
    sees(&history, 0, now, [ZERO, Tag(2), ZERO, ZERO]);
    accepted(&history);
}

#[test]
fn a_restart_point_lies_between_command_and_answer() {
    let history = begun();
    write(&history, 0, 1);
    let from = history.tick();
    let during = send(&history, 1, 2);
    let to = history.tick();
    history.answer(during, &[]);
    write(&history, 2, 3);
    for (state, wanted) in [
        ([Tag(1), ZERO, ZERO, ZERO], true),
        ([Tag(1), Tag(2), ZERO, ZERO], true),
        ([ZERO, ZERO, ZERO, ZERO], false),
        ([Tag(1), Tag(2), Tag(3), ZERO], false),
    ] {
        let record = history.lock().clone();
        let one = History::default();
        *one.lock() = record;
        sees(&one, from, to, state);
        if wanted { accepted(&one) } else { rejected(&one, "shows no state of reign 0") }
    }
}

#[test]
fn a_promotion_that_loses_what_was_answered_is_rejected() {
    let history = begun();
    write(&history, 0, 1);
    write(&history, 1, 2);
    let from = history.lock().last_answer(0, 0).unwrap();
    let to = history.tick();
    sees(&history, from, to, [Tag(1), ZERO, ZERO, ZERO]);
    rejected(&history, "shows no state of reign 0");
}

#[test]
fn states_of_one_name_are_one() {
    let history = begun();
    send(&history, 0, 1);
    die(&history);
    let now = history.tick();
    sees(&history, now, now, [ZERO; SECTORS]);
    sees(&history, now, now, [Tag(1), ZERO, ZERO, ZERO]);
    accepted(&history);
    history.lock().views.iter_mut().for_each(|view| view.name = Some("fork".into()));
    rejected(&history, "a view shows Zero, a view shows Tag(1)");
}

#[test]
fn an_answer_after_the_end_of_a_reign_is_rejected() {
    let history = begun();
    let before = send(&history, 0, 1);
    let closed = history.tick();
    history.lock().reigns[0].closed = Some(closed);
    // It was under way, and may have been answered before.
    history.answer(before, &[]);
    let number = send(&history, 1, 2);
    history.refuse(number, 1);
    accepted(&history);
    assert_eq!(history.lock().operations[before].outcome, Outcome::Done(3));
    write(&history, 2, 3);
    rejected(&history, "was over at");
}

#[test]
fn a_new_reign_begins_with_what_was_seen() {
    let history = begun();
    write(&history, 0, 1);
    write(&history, 1, 2);
    reign(&history, 1, vec![Tag(1), ZERO, ZERO, ZERO]);
    read(&history, 1, ZERO);
    accepted(&history);
    // What the other reign alone has is not there, ever.
    read(&history, 1, Tag(2));
    rejected(&history, "no order explains");
}

#[test]
fn many_refused_writes_to_one_sector_are_decided() {
    let history = begun();
    for tag in 1..=60 {
        let number = send(&history, 0, tag);
        history.refuse(number, 5);
    }
    write(&history, 0, 61);
    read(&history, 0, Tag(61));
    read(&history, 0, Tag(7));
    accepted(&history);
    // It happens once.
    read(&history, 0, Tag(61));
    rejected(&history, "no order explains");
}
