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
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/states.md");
    let text = std::fs::read_to_string(&file).expect("docs/states.md");
    let begin = format!("<!-- rendered: {name} -->\n");
    let start = text.find(&begin).unwrap_or_else(|| panic!("docs/states.md has no table {name}")) + begin.len();
    let end = start + text[start..].find("<!-- end -->").expect("the table's end");
    if std::env::var_os("OPENRED_GOLDEN").is_some_and(|value| value == "write") {
        std::fs::write(&file, [&text[..start], rendered, &text[end..]].concat()).expect("docs/states.md is written");
        return;
    }
    assert_eq!(&text[start..end], rendered, "docs/states.md, table {name}: write it anew with OPENRED_GOLDEN=write");
}
