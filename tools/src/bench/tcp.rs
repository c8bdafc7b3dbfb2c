//! TCP over an emulated line: iperf3 from one end to the other.

use super::{
    network::{End, Network},
    peers::is_there,
};
use anyhow::{Context, anyhow};
use serde_json::Value;
use std::{fs, path::Path, time::Duration};

/// The congestion controls that are measured, of those that the kernel has.
pub fn algorithms() -> Vec<&'static str> {
    let known = fs::read_to_string("/proc/sys/net/ipv4/tcp_available_congestion_control").unwrap_or_default();
    ["cubic", "bbr"].into_iter().filter(|name| known.split_whitespace().any(|word| word == *name)).collect()
}

/// Says what is missing, if iperf3 is.
///
/// # Errors
/// When it is not there; with what to do about it.
pub fn check() -> anyhow::Result<()> {
    if is_there("iperf3") {
        return Ok(());
    }
    Err(anyhow!("iperf3 is not installed; install it with: tools/install-packages bench"))
}

/// What one connection brings to the other side in so long, after a warm-up, in Mbit/s. Both in whole seconds.
///
/// # Errors
/// When iperf3 fails; with what it said.
pub fn goodput(network: &Network, algorithm: &str, warm_up: Duration, took: Duration) -> anyhow::Result<f64> {
    let place = network.place();
    let log = place.folder().join("iperf3-server.log");
    let _ = fs::remove_file(&log);
    let mut server = network.inside(End::Far, "iperf3");
    place.launch("iperf3-server", server.args(["--server", "--one-off", "--forceflush"]))?;
    let outcome = listening(network, &log).and_then(|()| {
        let (omitted, seconds) = (warm_up.as_secs().to_string(), took.as_secs().max(1).to_string());
        let mut client = network.inside(End::Near, "iperf3");
        client.arg("--client").arg(End::Far.address().to_string());
        client.args(["--omit", &omitted, "--time", &seconds, "--congestion", algorithm, "--json"]);
        // Over a bad line the greeting and the farewell take their time as well.
        place.run("iperf3", &mut client, warm_up + took + Duration::from_secs(60))
    });
    // One that has served its connection has ended.
    let _ = place.kill("iperf3-server");
    received(&outcome?)
}

/// Mbit/s that iperf3's receiver got.
fn received(text: &str) -> anyhow::Result<f64> {
    let answered = || format!("iperf3 answered: {text}");
    let answer: Value = serde_json::from_str(text).with_context(answered)?;
    let bits = answer["end"]["sum_received"]["bits_per_second"].as_f64().with_context(answered)?;
    Ok(bits / 1e6)
}

fn listening(network: &Network, log: &Path) -> anyhow::Result<()> {
    for _ in 0..500 {
        if fs::read_to_string(log).unwrap_or_default().contains("Server listening") {
            return Ok(());
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
    Err(anyhow!("iperf3 does not listen: {}", network.place().log_tail("iperf3-server")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_receiver_got_counts_and_a_failure_is_told_with_its_words() {
        let text = r#"{"end": {"sum_sent": {"bits_per_second": 9e7}, "sum_received": {"bits_per_second": 8.5e7}}}"#;
        assert_eq!(received(text).expect("a figure"), 85.0);
        for text in [r#"{"error": "unable to connect"}"#, "unable to connect"] {
            let error = received(text).expect_err(text);
            assert!(format!("{error:#}").contains("unable to connect"), "{error:#}");
        }
    }
}
