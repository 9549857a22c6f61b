//! The stored inputs of the fuzz targets, through the functions that the fuzzer runs.

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use remora_tests::fuzz::TARGETS;

fn seeds() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds")
}

/// The entries of a directory, in their order.
fn entries(directory: &Path) -> Vec<PathBuf> {
    let read = fs::read_dir(directory);
    let read = read.unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut all: Vec<_> = read.map(|entry| entry.expect("an entry").path()).collect();
    all.sort();
    all
}

#[test]
fn what_the_fuzzer_found_once_still_holds() {
    let mut broken = Vec::new();
    for target in TARGETS {
        let files = entries(&seeds().join(target.name));
        assert!(!files.is_empty(), "{} has no seeds", target.name);
        for file in files {
            let bytes = fs::read(&file).unwrap();
            // The panic says what broke; here is said for which file.
            if catch_unwind(AssertUnwindSafe(|| (target.run)(&bytes))).is_err() {
                broken.push(file);
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn every_seed_has_a_target_and_is_small() {
    let mut total = 0;
    for directory in entries(&seeds()) {
        let name = directory.file_name().unwrap().to_string_lossy().into_owned();
        assert!(TARGETS.iter().any(|target| target.name == name), "{name} is no target");
        for file in entries(&directory) {
            let length = fs::metadata(&file).unwrap().len();
            assert!(length <= 4096, "{}: {length} bytes", file.display());
            total += length;
        }
    }
    assert!(total <= 300 << 10, "{total} bytes of seeds");
}
