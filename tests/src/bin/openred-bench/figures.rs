//! Figures of one run: median, 99th percentile, unit, number of samples.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use serde::Serialize;

/// One measured quantity.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figure {
    pub(crate) median: f64,
    pub(crate) p99: f64,
    pub(crate) unit: &'static str,
    pub(crate) n: u64,
}

/// Figures by name.
#[derive(Debug, Default)]
pub(crate) struct Figures(BTreeMap<String, Figure>);

impl Figures {
    /// Adds a figure.
    pub(crate) fn add(&mut self, name: &str, figure: Figure) {
        self.0.insert(name.to_owned(), figure);
    }

    /// Adds the median and 99th percentile of samples.
    pub(crate) fn add_samples(&mut self, name: &str, unit: &'static str, mut samples: Vec<f64>) {
        samples.sort_by(f64::total_cmp);
        let at = |share: f64| samples[((samples.len() - 1) as f64 * share).round() as usize];
        if !samples.is_empty() {
            self.add(name, Figure { median: at(0.5), p99: at(0.99), unit, n: samples.len() as u64 });
        }
    }

    /// A figure by name.
    pub(crate) fn get(&self, name: &str) -> Option<&Figure> {
        self.0.get(name)
    }

    /// Takes another group's figures in.
    pub(crate) fn extend(&mut self, other: Figures) {
        self.0.extend(other.0);
    }

    /// Prints a table.
    pub(crate) fn print(&self, group: &str) {
        say(&format!("\n{group:<34} {:>12} {:>12}  {:<6} {:>7}", "median", "p99", "unit", "n"));
        for (name, figure) in &self.0 {
            let Figure { median, p99, unit, n } = figure;
            say(&format!("{name:<34} {median:>12.1} {p99:>12.1}  {unit:<6} {n:>7}"));
        }
    }

    /// Writes the group's file.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        Ok(std::fs::write(path, serde_json::to_string_pretty(&self.0)? + "\n")?)
    }
}

/// Prints a line of a table.
#[allow(clippy::print_stdout, reason = "tables are this program's output")]
pub(crate) fn say(line: &str) {
    println!("{line}");
}
