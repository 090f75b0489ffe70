//! Tables in the documents that are made by the code which they describe: a test renders them, and fails where the document has
//! another. `OPENRED_GOLDEN=write` puts them there.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// Held while the document is read and written: tests run side by side.
static TURN: Mutex<()> = Mutex::new(());

/// A table in Markdown: the first column names the row.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let line = |cells: Vec<&str>| format!("| {} |\n", cells.join(" | "));
    let mut text = line(head.to_vec());
    text.push_str(&line(vec!["---"; head.len()]));
    for row in rows {
        assert_eq!(row.len(), head.len(), "{row:?}");
        text.push_str(&line(row.iter().map(String::as_str).collect()));
    }
    text
}

/// Holds the table `name` in `docs/states.md` against `rendered`.
pub(crate) fn is_current(name: &str, rendered: &str) {
    settle(name, |_| rendered.to_owned());
}

/// Holds one line of the table `name` against `cells`, the first of which names it.
pub(crate) fn has_row(name: &str, cells: &[String]) {
    let row = format!("| {} |", cells.join(" | "));
    let named = format!("| {} |", cells[0]);
    settle(name, |text| {
        let mut lines: Vec<&str> = text.lines().collect();
        match lines.iter_mut().find(|line| line.starts_with(&named)) {
            Some(line) => *line = &row,
            None => lines.push(&row),
        }
        lines.iter().map(|line| format!("{line}\n")).collect()
    });
}

/// Holds the table `name` against what `made` makes of it, or puts that there.
fn settle(name: &str, made: impl FnOnce(&str) -> String) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/states.md");
    let text = std::fs::read_to_string(&file).expect("docs/states.md");
    let begin = format!("<!-- rendered: {name} -->\n");
    let start = text.find(&begin).unwrap_or_else(|| panic!("docs/states.md has no table {name}")) + begin.len();
    let end = start + text[start..].find("<!-- end -->").expect("the table's end");
    let rendered = made(&text[start..end]);
    if std::env::var_os("OPENRED_GOLDEN").is_some_and(|value| value == "write") {
        std::fs::write(&file, [&text[..start], &rendered, &text[end..]].concat()).expect("docs/states.md is written");
        return;
    }
    assert_eq!(&text[start..end], rendered, "docs/states.md, table {name}: write it anew with OPENRED_GOLDEN=write");
}
