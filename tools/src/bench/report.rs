//! Figures of interleaved rounds: as a table for people, and as JSON.

use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Which of two figures is the better one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// The higher, as of a rate.
    Higher,
    /// The lower, as of a time.
    Lower,
    /// The nearer to one, as of the share of two in one thing.
    NearestOne,
}

/// All that one run found.
#[derive(Debug)]
pub struct Results {
    /// The subcommand.
    pub name: &'static str,
    /// On what and how was measured: what, and its value.
    pub conditions: Vec<(&'static str, String)>,
    /// What a reader must know to judge the figures, such as peers that were left out.
    pub notes: Vec<String>,
    /// What of ours failed, if anything did; then the figures are not complete.
    pub failure: Option<String>,
    /// The figures.
    pub reports: Vec<Report>,
}

impl Results {
    /// Everything, with all rounds.
    pub fn json(&self) -> Value {
        let conditions: serde_json::Map<String, Value> =
            self.conditions.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        let reports: Vec<Value> = self.reports.iter().map(Report::json).collect();
        json!({
            "benchmark": self.name, "conditions": conditions, "notes": self.notes, "failure": self.failure,
            "reports": reports,
        })
    }
}

/// A cell's rounds in short.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The lowest round.
    pub low: f64,
    /// The middle round; of an even number, halfway between the two in the middle.
    pub median: f64,
    /// The highest round.
    pub high: f64,
}

/// Figures by what was measured (a row) and on what (a column).
#[derive(Debug)]
pub struct Report {
    title: String,
    unit: String,
    better: Better,
    columns: Vec<String>,
    rows: Vec<String>,
    figures: BTreeMap<(String, String), Vec<f64>>,
}

impl Report {
    /// Nothing measured yet.
    pub fn new(title: &str, unit: &str, better: Better) -> Self {
        let (columns, rows, figures) = (Vec::new(), Vec::new(), BTreeMap::new());
        Self { title: title.to_owned(), unit: unit.to_owned(), better, columns, rows, figures }
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

    /// Puts the columns in this order; one that is not named comes last.
    pub fn order_columns(&mut self, names: &[&str]) {
        let place = |column: &String| names.iter().position(|name| name == column).unwrap_or(names.len());
        self.columns.sort_by_key(place);
    }

    /// Every figure as a multiple of the same round's in one column; rows that the column lacks are left out.
    pub fn relative_to(&self, reference: &str) -> Self {
        let mut ratios = Self::new(&format!("{}, relative to {reference}", self.title), "×", self.better);
        for row in &self.rows {
            let Some(base) = self.rounds(row, reference) else { continue };
            for column in &self.columns {
                let rounds = self.rounds(row, column).unwrap_or_default();
                for (figure, base) in rounds.iter().zip(base).filter(|(_, base)| **base != 0.0) {
                    ratios.add(row, column, figure / base);
                }
            }
        }
        ratios
    }

    /// What was measured, and in which unit.
    pub fn title(&self) -> (&str, &str) {
        (&self.title, &self.unit)
    }

    /// Which figures are the better ones.
    pub fn better(&self) -> Better {
        self.better
    }

    /// On what was measured.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// What was measured.
    pub fn rows(&self) -> &[String] {
        &self.rows
    }

    /// A cell's rounds, in the order in which they were measured.
    pub fn rounds(&self, row: &str, column: &str) -> Option<&[f64]> {
        self.figures.get(&(row.to_owned(), column.to_owned())).map(Vec::as_slice)
    }

    /// A cell's rounds in short.
    pub fn cell(&self, row: &str, column: &str) -> Option<Spread> {
        let mut figures = self.rounds(row, column)?.to_vec();
        figures.sort_by(f64::total_cmp);
        let middle = figures.len() / 2;
        let upper = *figures.get(middle)?;
        let median = match figures.len() % 2 {
            1 => upper,
            _ => (upper + figures.get(middle.checked_sub(1)?)?) / 2.0,
        };
        Some(Spread { low: *figures.first()?, median, high: *figures.last()? })
    }

    /// The table in Markdown: each cell the median, then the lowest and highest round.
    pub fn table(&self) -> String {
        let better = match self.better {
            Better::Higher => "higher is better",
            Better::Lower => "lower is better",
            Better::NearestOne => "nearest to 1 is better",
        };
        let mut text = format!("{} ({}, {better}; median, lowest–highest round)\n\n| |", self.title, self.unit);
        self.columns.iter().for_each(|column| text += &format!(" {column} |"));
        text += "\n| --- |";
        self.columns.iter().for_each(|_| text += " --- |");
        for row in &self.rows {
            text += &format!("\n| {row} |");
            for column in &self.columns {
                text += &match self.cell(row, column) {
                    Some(cell) => format!(" {} ({}–{}) |", show(cell.median), show(cell.low), show(cell.high)),
                    None => " – |".to_owned(),
                };
            }
        }
        text + "\n"
    }

    fn json(&self) -> Value {
        let mut cells = Vec::new();
        for (row, column) in self.rows.iter().flat_map(|row| self.columns.iter().map(move |column| (row, column))) {
            if let (Some(cell), Some(rounds)) = (self.cell(row, column), self.rounds(row, column)) {
                cells.push(json!({
                    "row": row, "column": column, "rounds": rounds,
                    "median": cell.median, "low": cell.low, "high": cell.high,
                }));
            }
        }
        let better = match self.better {
            Better::Higher => "higher",
            Better::Lower => "lower",
            Better::NearestOne => "nearest-one",
        };
        json!({
            "title": self.title, "unit": self.unit, "better": better,
            "rows": self.rows, "columns": self.columns, "cells": cells,
        })
    }
}

/// A figure with three digits that say something.
pub fn show(figure: f64) -> String {
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
        let mut report = Report::new("Title", "MB/s", Better::Higher);
        for figure in [3.0, 1.0, 20.0] {
            report.add("row", "a", figure);
        }
        report.add("row", "b", 1.0);
        report.add("row", "b", 2.0);
        assert_eq!(report.cell("row", "a"), Some(Spread { low: 1.0, median: 3.0, high: 20.0 }));
        assert_eq!(report.cell("row", "b"), Some(Spread { low: 1.0, median: 1.5, high: 2.0 }));
        assert_eq!(report.cell("row", "c"), None);
        assert!(report.table().ends_with("\n| row | 3.00 (1.00–20.0) | 1.50 (1.00–2.00) |\n"), "{}", report.table());
    }

    #[test]
    fn ratios_are_made_within_a_round_before_their_median() {
        let mut report = Report::new("Title", "MB/s", Better::Higher);
        // The machine was twice as fast in the second round: the ratio does not know.
        for (ours, theirs) in [(10.0, 5.0), (20.0, 10.0)] {
            report.add("row", "ours", ours);
            report.add("row", "theirs", theirs);
        }
        report.add("row that the reference lacks", "theirs", 1.0);
        let ratios = report.relative_to("ours");
        assert_eq!(ratios.cell("row", "theirs"), Some(Spread { low: 0.5, median: 0.5, high: 0.5 }));
        assert_eq!(ratios.rows(), ["row"]);
    }
}
