//! Goal: no surprise breaks a promise, at whatever moment of a story it comes. Method: each story, told once for every moment.

use simulator::{
    crowd,
    story::{self, Story},
};

#[test]
fn no_surprise_breaks_a_promise() {
    let start = std::time::Instant::now();
    let survey = story::survey(crowd::jobs(), || true, |_| {});
    println!("{} tellings in {:?}, {} s simulated", survey.played, start.elapsed(), survey.micros / 1_000_000);
    let failures = survey.failures.iter();
    let failures: Vec<String> = failures
        .map(|(telling, message)| {
            let message = message.replace('\n', " ");
            format!("{message}\n    cargo run --release -p tools --bin simulate -- --story {telling} --trace")
        })
        .collect();
    assert!(failures.is_empty(), "{} of {} fail:\n{}", failures.len(), survey.played, failures.join("\n"));
    // The surprises come.
    for mark in ["role: secondary to primary", "pair: duplex-pending to duplex"] {
        assert!(survey.marks.contains_key(mark), "{mark} was not reached: {:?}", survey.marks);
    }
    assert!(survey.played > 10 * Story::ALL.len() as u64);
}
