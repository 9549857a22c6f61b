//! The Helm chart, made from the same templates.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{TEMPLATES, template, values};

const CHART: &str = include_str!("../../../deploy/chart/Chart.yaml");
const NOTES: &str = include_str!("../../../deploy/chart/NOTES.txt");
const SCHEMA: &str = include_str!("../../../deploy/chart/values.schema.json");
const HEADER: &str = "{{- /* Made from deploy/templates; change it there. */ -}}\n";

/// The chart's files: path inside the chart, and content.
pub(super) fn files(version: &str) -> Vec<(PathBuf, String)> {
    let version_of =
        |text| template::render(text, &serde_json::json!({ template::VERSION: version }));
    let mut files = vec![
        (PathBuf::from("Chart.yaml"), version_of(CHART)),
        (PathBuf::from("values.yaml"), values::defaults(version)),
        (PathBuf::from("values.schema.json"), SCHEMA.to_owned()),
        (PathBuf::from("templates/NOTES.txt"), NOTES.to_owned()),
    ];
    files.extend(TEMPLATES.iter().map(|(name, text)| {
        (Path::new("templates").join(name), format!("{HEADER}{}", template::helm(text)))
    }));
    files
}

/// Writes the chart into a directory, which is made where it is absent.
///
/// # Errors
/// The system's word on the first file that cannot be written.
pub(super) fn write(directory: &Path, version: &str) -> io::Result<()> {
    fs::create_dir_all(directory.join("templates"))?;
    for (path, text) in files(version) {
        fs::write(directory.join(path), text)?;
    }
    Ok(())
}
