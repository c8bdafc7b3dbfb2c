//! What happened, for people: kept only when a seed is played again, because it costs more than the history itself.

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    rc::Rc,
};

/// So many lines are kept.
const LINES_MAX: usize = 4096;

/// Lines of text, and what was reached. Copies share them, so that they are there after a panic.
#[derive(Clone, Default)]
pub struct Trace {
    lines: Option<Rc<RefCell<VecDeque<String>>>>,
    prints: bool,
    marks: Rc<RefCell<BTreeMap<String, u64>>>,
}

impl Trace {
    /// One that keeps its last lines; with `prints` it shows each of them at once.
    pub fn kept(prints: bool) -> Self {
        Self { lines: Some(Rc::default()), prints, ..Self::default() }
    }

    /// Something happened at a true time, in microseconds.
    pub fn note(&self, now: u64, text: impl FnOnce() -> String) {
        let Some(lines) = &self.lines else { return };
        let line = format!("{:12.6}  {}", now as f64 / 1e6, text());
        if self.prints {
            eprintln!("{line}");
        }
        let mut lines = lines.borrow_mut();
        if lines.len() == LINES_MAX {
            lines.pop_front();
        }
        lines.push_back(line);
    }

    /// The last lines.
    pub fn last(&self, count: usize) -> Vec<String> {
        let lines = self.lines.as_ref().map(|lines| lines.borrow().iter().cloned().collect::<Vec<_>>());
        let lines = lines.unwrap_or_default();
        lines[lines.len().saturating_sub(count)..].to_vec()
    }

    /// Something was reached.
    pub fn mark(&self, name: &str) {
        let mut marks = self.marks.borrow_mut();
        match marks.get_mut(name) {
            Some(count) => *count += 1,
            None => drop(marks.insert(name.to_owned(), 1)),
        }
    }

    /// How often what was reached.
    pub fn marks(&self) -> BTreeMap<String, u64> {
        self.marks.borrow().clone()
    }
}
