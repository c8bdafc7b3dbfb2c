//! Goal: no short history breaks a promise. Method: all of them, on a tiny pair, in four settings.

use simulator::{crowd, exhaustive};

/// What takes half a minute on two cores without much optimisation; by hand, longer: `simulate --exhaustive 5`.
const EVENTS_MAX: usize = 4;

#[test]
fn no_short_history_breaks_a_promise() {
    let start = std::time::Instant::now();
    let survey = exhaustive::survey(&exhaustive::Setting::ALL, EVENTS_MAX, crowd::jobs(), || true, |_| {});
    println!("{} histories in {:?}, {} s simulated", survey.history_count, start.elapsed(), survey.micros / 1_000_000);
    let failures = survey.failures.iter();
    let failures: Vec<String> = failures
        .map(|(case, message)| {
            let message = message.replace('\n', " ");
            format!("{message}\n    cargo run --release -p tools --bin simulate -- --history {case} --trace")
        })
        .collect();
    assert!(failures.is_empty(), "{} of {} fail:\n{}", failures.len(), survey.history_count, failures.join("\n"));
    // They are not all the same.
    for mark in ["role: secondary to primary", "role: primary to fenced", "refused: NoRestartPoint"] {
        assert!(survey.marks.contains_key(mark), "{mark} was not reached: {:?}", survey.marks);
    }
}
