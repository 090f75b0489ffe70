//! Figures of one run: median, 99th percentile, unit, number of samples. Of a few runs the 99th percentile is the worst.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use serde::Serialize;

/// One measured quantity.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figure {
    pub(crate) median: f64,
    /// On the bad side: of times the longest, of rates the lowest.
    pub(crate) p99: f64,
    pub(crate) unit: &'static str,
    pub(crate) n: u64,
}

/// Which way is bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Better {
    Higher,
    Lower,
}

/// Figures by name.
#[derive(Debug, Default)]
pub(crate) struct Figures(BTreeMap<String, Figure>);

impl Figures {
    /// Adds a figure.
    pub(crate) fn add(&mut self, name: &str, figure: Figure) {
        self.0.insert(name.to_owned(), figure);
    }

    /// Adds the median and the worst of a few runs.
    pub(crate) fn add_runs(&mut self, name: &str, unit: &'static str, better: Better, mut runs: Vec<f64>) {
        runs.sort_by(f64::total_cmp);
        let Some((least, most)) = runs.first().zip(runs.last()) else { return };
        let p99 = if better == Better::Higher { *least } else { *most };
        let median = runs[runs.len() / 2];
        self.add(name, Figure { median, p99, unit, n: runs.len() as u64 });
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
        for (name, Figure { median, p99, unit, n }) in &self.0 {
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn of_a_few_runs_the_worst_stands_for_the_percentile() {
        let mut figures = Figures::default();
        figures.add_runs("rate", "MiB/s", Better::Higher, vec![300.0, 100.0, 200.0]);
        figures.add_runs("time", "ms", Better::Lower, vec![300.0, 100.0, 200.0]);
        figures.add_runs("none", "ms", Better::Lower, Vec::new());
        let text = serde_json::to_string(&figures.0).unwrap();
        assert_eq!(
            text,
            r#"{"rate":{"median":200.0,"p99":100.0,"unit":"MiB/s","n":3},"time":{"median":200.0,"p99":300.0,"unit":"ms","n":3}}"#
        );
    }
}
