//! Figures of interleaved rounds, as a table for people and as JSON.

use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Figures by what was measured (a row) and on what (a column).
#[derive(Debug)]
pub struct Report {
    title: &'static str,
    unit: &'static str,
    columns: Vec<String>,
    rows: Vec<String>,
    figures: BTreeMap<(String, String), Vec<f64>>,
}

impl Report {
    /// Nothing measured yet.
    pub fn new(title: &'static str, unit: &'static str) -> Self {
        Self { title, unit, columns: Vec::new(), rows: Vec::new(), figures: BTreeMap::new() }
    }

    /// Adds one round's figure.
    pub fn add(&mut self, row: &str, column: &str, figure: f64) {
        for (names, name) in [(&mut self.rows, row), (&mut self.columns, column)] {
            if !names.iter().any(|known| known == name) {
                names.push(name.to_owned());
            }
        }
        self.figures.entry((row.to_owned(), column.to_owned())).or_default().push(figure);
    }

    /// The median of a cell's rounds, the lowest and the highest.
    pub fn cell(&self, row: &str, column: &str) -> Option<(f64, f64, f64)> {
        let mut figures = self.figures.get(&(row.to_owned(), column.to_owned()))?.clone();
        figures.sort_by(f64::total_cmp);
        let middle = figures.len() / 2;
        let median = if figures.len() % 2 == 1 {
            *figures.get(middle)?
        } else {
            (figures.get(middle)? + figures.get(middle.checked_sub(1)?)?) / 2.0
        };
        Some((median, *figures.first()?, *figures.last()?))
    }

    /// The table in Markdown: each cell the median, then the lowest and highest round.
    pub fn table(&self) -> String {
        let mut text = format!("{} ({}; median, lowest–highest round)\n\n| |", self.title, self.unit);
        self.columns.iter().for_each(|column| text += &format!(" {column} |"));
        text += "\n| --- |";
        self.columns.iter().for_each(|_| text += " --- |");
        for row in &self.rows {
            text += &format!("\n| {row} |");
            for column in &self.columns {
                text += &match self.cell(row, column) {
                    Some((median, low, high)) => format!(" {} ({}–{}) |", show(median), show(low), show(high)),
                    None => " – |".to_owned(),
                };
            }
        }
        text + "\n"
    }

    /// All rounds.
    pub fn json(&self) -> Value {
        let cells: Vec<Value> = self
            .figures
            .iter()
            .map(|((row, column), rounds)| json!({ "row": row, "column": column, "rounds": rounds }))
            .collect();
        json!({ "title": self.title, "unit": self.unit, "cells": cells })
    }
}

fn show(figure: f64) -> String {
    match figure.abs() {
        size if size >= 100.0 => format!("{figure:.0}"),
        size if size >= 10.0 => format!("{figure:.1}"),
        _ => format!("{figure:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_the_median_with_its_spread() {
        let mut report = Report::new("Title", "MB/s");
        for figure in [3.0, 1.0, 20.0] {
            report.add("row", "a", figure);
        }
        report.add("row", "b", 1.0);
        report.add("row", "b", 2.0);
        assert_eq!(report.cell("row", "a"), Some((3.0, 1.0, 20.0)));
        assert_eq!(report.cell("row", "b"), Some((1.5, 1.0, 2.0)));
        assert_eq!(report.cell("row", "c"), None);
        assert!(report.table().ends_with("\n| row | 3.00 (1.00–20.0) | 1.50 (1.00–2.00) |\n"), "{}", report.table());
    }
}
