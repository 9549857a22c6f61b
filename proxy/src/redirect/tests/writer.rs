//! What writes the rules in a test: each backend that this machine has, in turn.

use std::{
    env,
    ffi::OsStr,
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use super::{
    super::backend::{self, Backend, BackendError, Written},
    RedirectConfig,
    namespace::{INSIDE, inside_as},
};

/// Programs of the two implementations of iptables, and the names under which they are looked for.
const IPTABLES: [(&str, &str); 2] =
    [("iptables-legacy", "iptables-legacy"), ("iptables-nft", "iptables")];

/// Rules are written without it, and not read.
const NO_LISTER: &str = "no nft to list its rules; it is in Debian's package nftables";

/// A backend, with a search path of its own.
pub(super) struct Writer {
    pub(super) backend: Backend,
    /// Who this is: `nft`, or what its programs' names begin with on this machine.
    pub(super) name: &'static str,
    /// A directory with links to its programs and nothing else.
    pub(super) path: tempfile::TempDir,
}

/// Runs `body` in new namespaces with each backend; says which one this machine does not have.
pub(super) fn each(test: &str, body: impl Fn(Writer)) {
    if let Some(name) = env::var_os(INSIDE) {
        let writer = Writer::named(&name).expect("the outer process has looked");
        return body(writer);
    }
    for name in ["nft", IPTABLES[0].0, IPTABLES[1].0] {
        match able(name) {
            Ok(()) => inside_as(name, &["-rn"], test),
            Err(why) => println!("skipped with {name}: {why}"),
        }
    }
}

/// Runs `body` in new namespaces where this machine has both implementations of iptables.
pub(super) fn with_both_iptables(test: &str, body: impl FnOnce(Writer, Writer)) {
    if env::var_os(INSIDE).is_some() {
        let [legacy, nft] = IPTABLES.map(|(name, _)| Writer::named(OsStr::new(name)).unwrap());
        return body(legacy, nft);
    }
    let listed = program("nft").map(drop).ok_or_else(|| NO_LISTER.to_owned());
    match listed.and_then(|()| IPTABLES.iter().try_for_each(|(name, _)| able(name))) {
        Ok(()) => inside_as("both", &["-rn"], test),
        Err(why) => println!("skipped: {why}"),
    }
}

/// Whether this machine has the programs and its kernel their tables.
fn able(name: &str) -> Result<(), String> {
    if name == "nft" {
        return Ok(());
    }
    let restore = program(&format!("{name}-restore"))
        .ok_or_else(|| format!("no {name}-restore; it is in Debian's package iptables"))?;
    // Opening the table is enough to know.
    let script = "printf '*nat\\nCOMMIT\\n' | \"$0\" --noflush --test";
    let output = Command::new("unshare")
        .args(["-rn", "sh", "-c", script])
        .arg(restore)
        .env("XTABLES_LOCKFILE", env::temp_dir().join("remora-test-xtables.lock"))
        .output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Err(format!("unshare: {error}")),
    }
}

fn program(name: &str) -> Option<PathBuf> {
    ["/usr/sbin", "/sbin", "/usr/bin", "/bin"]
        .iter()
        .map(|dir| Path::new(dir).join(name))
        .find(|file| file.exists())
}

impl Writer {
    fn named(name: &OsStr) -> Option<Self> {
        let path = tempfile::tempdir().unwrap();
        if name == "nft" {
            return Some(Self { backend: Backend::Nft, name: "nft", path });
        }
        let (real, found_as) = IPTABLES.into_iter().find(|(real, _)| name == *real)?;
        for (from, to) in
            [(real, found_as), (&real.replacen("ip", "ip6", 1), &found_as.replacen("ip", "ip6", 1))]
        {
            for part in ["restore", "save"] {
                let link = path.path().join(format!("{to}-{part}"));
                symlink(program(&format!("{from}-{part}"))?, link).unwrap();
            }
        }
        Some(Self { backend: Backend::Iptables, name: real, path })
    }

    /// One that finds the programs of all of these.
    pub(super) fn of(backend: Backend, others: &[&Self]) -> Self {
        let path = tempfile::tempdir().unwrap();
        for entry in others.iter().flat_map(|other| fs::read_dir(other.path.path()).unwrap()) {
            let link = entry.unwrap();
            let program = fs::read_link(link.path()).unwrap();
            symlink(program, path.path().join(link.file_name())).unwrap();
        }
        Self { backend, name: "all", path }
    }

    pub(super) fn try_apply(&self, config: &RedirectConfig) -> Result<Written, BackendError> {
        backend::apply(&config.rules(), self.backend, self.path.path().as_os_str())
    }

    pub(super) fn apply(&self, config: &RedirectConfig) {
        self.try_apply(config).unwrap_or_else(|error| panic!("{}: {error}", self.name));
    }

    pub(super) fn remove(&self) {
        let removed = backend::remove(self.path.path().as_os_str());
        removed.unwrap_or_else(|error| panic!("{}: {error}", self.name));
    }
}

impl Writer {
    /// Whether a program is there that tells what was written.
    pub(super) fn is_readable(&self) -> bool {
        let readable = !matches!(self.backend, Backend::Nft) || program("nft").is_some();
        if !readable {
            println!("skipped with nft: {NO_LISTER}");
        }
        readable
    }
}

/// All rules of this network namespace, whoever wrote them, as far as programs are there to tell.
pub(super) fn ruleset() -> String {
    let mut all = String::new();
    let legacy = fs::read_to_string("/proc/thread-self/net/ip_tables_names").unwrap_or_default();
    let mut tell = |name: &str, flags: &[&str]| {
        let Some(program) = program(name) else { return };
        all += &output(Command::new(program).args(flags)).unwrap();
    };
    tell("nft", &["list", "ruleset"]);
    for name in ["iptables-nft-save", "ip6tables-nft-save"] {
        tell(name, &[]);
    }
    if legacy.contains("nat") {
        for name in ["iptables-legacy-save", "ip6tables-legacy-save"] {
            tell(name, &["-t", "nat"]);
        }
    }
    // The time of the listing, and how many packets a chain has seen.
    let lines = all.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.split(" [").next().unwrap_or(line).to_owned() + "\n").collect()
}

/// Standard output of a program in the calling thread's network namespace.
pub(super) fn output(command: &mut Command) -> io::Result<String> {
    let output = command.output()?;
    let problem = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {problem}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
