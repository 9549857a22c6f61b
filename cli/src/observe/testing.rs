//! Recorded answers, and the output that is expected word by word.

use std::{fs, path::PathBuf};

use serde::de::DeserializeOwned;

fn file(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "src/observe/recorded", name].iter().collect()
}

/// A recorded answer.
pub(super) fn recorded<T: DeserializeOwned>(name: &str) -> T {
    let text = fs::read_to_string(file(name)).unwrap();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Compares lines with the file of that name.
pub(super) fn golden(name: &str, lines: &[String]) {
    let expected = fs::read_to_string(file(name)).unwrap_or_default();
    let shown = lines.join("\n") + "\n";
    assert!(shown == expected, "{name} is\n{expected}\nbut shown is\n{shown}");
}
