//! The table of `docs/services.md` against the tests that it names.

use std::{fs, path::Path};

#[test]
fn every_test_that_the_table_of_services_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let text = fs::read_to_string(root.join("docs/services.md")).unwrap();
    // `tests/cases/services/near.rs::a_name` in backquotes.
    let words = text.split('`').skip(1).step_by(2);
    let named: Vec<(&str, &str)> = words.filter_map(|word| word.split_once(".rs::")).collect();
    assert!(named.len() > 20, "the table names {} tests", named.len());
    for (file, test) in named {
        let path = root.join(format!("{file}.rs"));
        let source = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{file}.rs: {e}"));
        assert!(source.contains(&format!("fn {test}(")), "{file}.rs has no test {test}");
    }
}
