//! What the demo shows while it works: one line a step with the time it took, a bar where there is much to do.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Prints steps and remembers how long each took.
#[derive(Debug)]
pub struct Display {
    start: Instant,
    steps: Vec<(String, Duration)>,
}

impl Display {
    /// Starts the clock.
    pub fn new() -> Self {
        Self { start: Instant::now(), steps: Vec::new() }
    }

    /// Runs one step; `work` may say more about its result, which is shown behind the name.
    ///
    /// # Errors
    /// What `work` failed with.
    pub fn step<T>(
        &mut self,
        name: &str,
        work: impl FnOnce(&Progress) -> anyhow::Result<(T, String)>,
    ) -> anyhow::Result<T> {
        let progress = Progress { bar: ProgressBar::new_spinner() };
        progress.bar.set_style(style("{spinner} {msg}"));
        progress.bar.set_message(name.to_owned());
        progress.bar.enable_steady_tick(Duration::from_millis(100));
        let start = Instant::now();
        let result = work(&progress);
        let took = start.elapsed();
        progress.bar.finish_and_clear();
        let (value, told) = result.inspect_err(|_| {
            println!("  ✗ {name}");
        })?;
        println!("  ✓ {:>8}  {name}{}{told}", seconds(took), if told.is_empty() { "" } else { ": " });
        self.steps.push((name.to_owned(), took));
        Ok(value)
    }

    /// Since the start.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// How long a step took, if it was done.
    pub fn took(&self, name: &str) -> Option<Duration> {
        self.steps.iter().find(|(step, _)| step == name).map(|&(_, took)| took)
    }
}

impl Default for Display {
    fn default() -> Self {
        Self::new()
    }
}

/// The running step's bar.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// There are so many bytes to do.
    pub fn expect_bytes(&self, bytes: u64) {
        self.bar.set_length(bytes);
        self.bar.set_style(style("{spinner} {msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}"));
    }

    /// So many more bytes are done.
    pub fn add_bytes(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    /// Something happened that is worth a line of its own.
    pub fn note(&self, text: &str) {
        // Where there is no terminal the bar prints nothing, so the line must not go through it.
        if self.bar.is_hidden() {
            println!("             {text}");
        } else {
            self.bar.println(format!("             {text}"));
        }
    }
}

/// A time as a person reads it.
pub fn seconds(time: Duration) -> String {
    if time < Duration::from_secs(1) {
        format!("{:.1} ms", time.as_secs_f64() * 1_000.0)
    } else {
        format!("{:.2} s", time.as_secs_f64())
    }
}

/// A size as a person reads it.
pub fn size(bytes: u64) -> String {
    let mut number = bytes as f64;
    let mut unit = "B";
    for larger in ["KiB", "MiB", "GiB"] {
        if number < 1_024.0 {
            break;
        }
        number /= 1_024.0;
        unit = larger;
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{number:.1} {unit}") }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("our own template is right")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_readable() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1_023), "1023 B");
        assert_eq!(size(1_536), "1.5 KiB");
        assert_eq!(size(3 << 30), "3.0 GiB");
        assert_eq!(seconds(Duration::from_micros(1_500)), "1.5 ms");
        assert_eq!(seconds(Duration::from_millis(1_500)), "1.50 s");
    }

    #[test]
    fn steps_are_remembered_and_failures_passed_on() {
        let mut display = Display::new();
        let value = display.step("good", |_| Ok((7, String::new()))).expect("it works");
        assert_eq!(value, 7);
        assert!(display.took("good").is_some());
        let failed = display.step("bad", |_| -> anyhow::Result<((), String)> { anyhow::bail!("No room") });
        assert_eq!(failed.expect_err("it failed").to_string(), "No room");
        assert_eq!(display.took("bad"), None);
    }
}
