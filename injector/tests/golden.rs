//! Golden pairs: each `golden/NAME.input.yaml` becomes `golden/NAME.output.yaml`, with what was
//! reported as comments at its end, and injecting the output once more changes nothing.
//!
//! After a wanted change, `UPDATE_GOLDEN=1 cargo test -p remora-injector` writes the outputs anew;
//! read the difference before committing it.

use std::{
    collections::BTreeMap,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use remora_core::names::annotations;
use remora_injector::{Decision, Settings, inject_stream};

#[test]
fn templates_become_what_is_written_beside_them() {
    let settings = Settings {
        proxy_image: "example.com/remora/proxy:1.0".to_owned(),
        proxy_version: "1.0".to_owned(),
        ..Settings::default()
    };
    let asked = BTreeMap::from([(annotations::INJECT.to_owned(), "enabled".to_owned())]);
    let mut failed = Vec::new();
    for input in inputs() {
        let text = fs::read_to_string(&input).unwrap();
        let result = inject_stream(&text, "default", &asked, &settings).unwrap();
        let again = inject_stream(&result.text, "default", &asked, &settings).unwrap();
        assert_eq!(again.text, result.text, "{} is not idempotent", input.display());
        assert!(!again.report.iter().any(|o| matches!(o.decision, Decision::Inject(_))));

        let mut actual = result.text;
        for object in &result.report {
            writeln!(actual, "# {object}").unwrap();
        }
        let output = PathBuf::from(input.to_str().unwrap().replace(".input.", ".output."));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&output, &actual).unwrap();
        }
        if fs::read_to_string(&output).unwrap_or_default() != actual {
            failed.push(format!("{} should be:\n{actual}", output.display()));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// What `kubectl` takes in is what the API's types allow. It wants a server even for this, to know
/// the kinds; where there is none, or no kubectl, nothing is checked.
#[test]
fn kubectl_reads_every_output() {
    let kubectl = |arguments: &[&str]| {
        let mut command = Command::new("kubectl");
        command.args(arguments).arg("--request-timeout=5s").stdin(Stdio::null()).output()
    };
    match kubectl(&["version"]) {
        Err(error) => return eprintln!("skipped: no kubectl ({error})"),
        Ok(output) if !output.status.success() => {
            return eprintln!("skipped: kubectl reaches no server");
        }
        Ok(_) => {}
    }
    for input in inputs() {
        let output = input.to_str().unwrap().replace(".input.", ".output.");
        let read = ["create", "--dry-run=client", "--validate=strict", "-o", "name", "-f", &output];
        let read = kubectl(&read).unwrap();
        assert!(read.status.success(), "{output}: {}", String::from_utf8_lossy(&read.stderr));
    }
}

fn inputs() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut inputs: Vec<PathBuf> = fs::read_dir(folder)
        .expect("the golden folder is beside this file")
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.to_string_lossy().ends_with(".input.yaml"))
        .collect();
    inputs.sort();
    assert!(inputs.len() >= 36, "golden templates are missing");
    inputs
}
