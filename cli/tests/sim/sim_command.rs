//! `remora sim` as people run it.

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Command, Output, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const SMALL: &str = "\
duration: 10s
servers:
  a: {count: 2, latency: 5ms}
clients:
  web: {rate: 20}
events:
  - {at: 5s, for: 1s, server: a-1, latency: 20ms}
expect:
  - success >= 1
";

fn remora(args: &[&str], directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_remora"));
    command.args(args).current_dir(directory).stdin(Stdio::null()).env_remove("COLUMNS");
    command
}

fn sim(text: &str, args: &[&str]) -> (Output, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("s.yaml"), text).unwrap();
    let args: Vec<&str> = ["sim", "s.yaml"].into_iter().chain(args.iter().copied()).collect();
    (remora(&args, directory.path()).output().unwrap(), directory)
}

fn said(output: &[u8]) -> &str {
    std::str::from_utf8(output).unwrap()
}

#[test]
fn the_status_says_whether_what_was_expected_held() {
    let (output, _dir) = sim(SMALL, &[]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output.stderr));
    assert!(said(&output.stdout).contains("\nheld    success >= 1"), "{}", said(&output.stdout));
    let (output, _dir) = sim(&SMALL.replace("success >= 1", "p50 <= 1ms"), &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output.stdout).contains("\nFAILED  p50 <= 1ms   6.0 ms, 1.0 ms\n"));
}

#[test]
fn a_bad_file_is_one_line_with_its_place_and_status_2() {
    let (output, _dir) = sim(&SMALL.replace("latency: 5ms", "latency: quick"), &[]);
    assert_eq!(output.status.code(), Some(2));
    let error = said(&output.stderr);
    assert!(
        error.starts_with("remora: s.yaml:3: latency: \"quick\" is no latency; use"),
        "{error}"
    );
    assert_eq!((error.lines().count(), output.stdout.len()), (1, 0));
}

#[test]
fn wrong_usage_is_status_2() {
    for args in [&["--width", "10"][..], &["--seed", "x"], &["--set", "decay"], &["other.yaml"]] {
        assert_eq!(sim(SMALL, args).0.status.code(), Some(2), "{args:?}");
    }
    let (output, _dir) = sim(SMALL, &["--set", "decay=soon"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output.stderr).starts_with("remora: --set decay: \"soon\" is no duration; use"));
}

#[test]
fn the_same_file_and_seed_print_the_same_and_the_seed_is_said() {
    let print = |args: &[&str]| sim(SMALL, args).0.stdout;
    assert_eq!(print(&["--seed", "5"]), print(&["--seed", "5"]));
    assert_ne!(print(&["--seed", "5"]), print(&["--seed", "6"]));
    assert!(said(&print(&["--seed", "5"])).contains("; seed 5\n"));
    assert!(said(&print(&[])).contains("; seed 1\n"));
}

#[test]
fn json_is_one_object_with_figures_seconds_and_verdicts() {
    let (output, _dir) = sim(SMALL, &["--json", "--set", "decay=2s"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&json["seed"], &json["held"]), (&1.into(), &true.into()));
    assert_eq!(json["policies"][0]["policy"]["decay"], "2s");
    assert_eq!(json["policies"][0]["seconds"].as_array().unwrap().len(), 10);
    assert_eq!(json["policies"][0]["servers"][1]["name"], "a-2");
    assert_eq!(json["expect"][0]["text"], "success >= 1");
}

#[test]
fn the_svg_has_all_in_itself() {
    let (output, dir) = sim(SMALL, &["--svg", "s.svg"]);
    assert_eq!(output.status.code(), Some(0));
    let svg = fs::read_to_string(dir.path().join("s.svg")).unwrap();
    assert!(
        svg.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\"") && svg.ends_with("</svg>\n")
    );
    assert_eq!(svg.matches("http").count(), 1, "only the name space");
    for part in
        ["<title id=\"t\">Simulation s</title>", "<desc id=\"d\">", "prefers-color-scheme:dark"]
    {
        assert!(svg.contains(part), "{part}");
    }
    let (output, _dir) = sim(SMALL, &["--svg", "no/s.svg"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output.stderr).starts_with("remora: cannot write no/s.svg: "));
}

#[test]
fn an_interrupt_ends_it_and_leaves_no_file() {
    if ignores_interrupts() {
        eprintln!("skipped: interrupts are ignored here, as in the background of a shell");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    // Far more than anybody would wait for here.
    let large = "duration: 1h\nservers: {a: {count: 50, latency: 5ms}}\n\
                 clients: {web: {count: 100, rate: 5}}\n";
    fs::write(directory.path().join("s.yaml"), large).unwrap();
    let args = ["sim", "s.yaml", "--svg", "s.svg"];
    let mut child = remora(&args, directory.path()).stdout(Stdio::null()).spawn().unwrap();
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT).unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(Signal::SIGINT as i32));
    assert!(!directory.path().join("s.svg").exists());
}

/// Whether this process, and so every program that it starts, was told to ignore SIGINT.
fn ignores_interrupts() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    let ignored = u64::from_str_radix(ignored.trim(), 16).unwrap();
    ignored & (1 << (Signal::SIGINT as i32 - 1)) != 0
}

#[test]
fn the_commands_of_the_documentation_work() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap();
    let directory = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(root.join("docs"), directory.path().join("docs")).unwrap();
    let text: String = ["docs/simulator.md", "docs/retries-and-breaking.md"]
        .map(|page| fs::read_to_string(root.join(page)).unwrap())
        .concat();
    let commands =
        text.lines().filter_map(|line| line.trim_start_matches("$ ").strip_prefix("remora "));
    let commands: Vec<&str> = commands.collect();
    assert!(commands.len() > 7, "{commands:?}");
    for command in commands {
        let command = command.split(" # ").next().unwrap();
        let args: Vec<&str> = command.split_whitespace().collect();
        let output = remora(&args, directory.path()).output().unwrap();
        // Tuning may well break what a file expects; it is not a mistake.
        let code = output.status.code();
        assert!(code == Some(0) || command.contains("--set") && code == Some(1), "{command}");
    }
}
