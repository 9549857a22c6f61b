//! The programs of iptables: `iptables-restore` and its kin, found and run.

use std::{
    env,
    ffi::OsStr,
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::{
    super::rules::Rules,
    IptablesError,
    script::{Family, Ours},
};

/// In order of preference: who wants iptables at all mostly has a kernel without nf_tables.
const NAMES: [&str; 2] = ["iptables-legacy", "iptables"];
/// Longest wait, in seconds, for another program that changes rules.
const LOCK_WAIT: &str = "5";
const LOCK: &str = "XTABLES_LOCKFILE";

/// An implementation of iptables.
#[derive(Debug)]
pub(super) struct Tool {
    /// What its programs' names begin with, in IPv4.
    pub(super) name: &'static str,
    kernel: Kernel,
    v4: Programs,
    v6: Option<Programs>,
}

/// What keeps the rules in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kernel {
    /// ip_tables.
    Legacy,
    /// nf_tables, in tables that iptables calls its own.
    Nft,
}

#[derive(Debug)]
struct Programs {
    restore: PathBuf,
    save: PathBuf,
}

/// The implementations on this search path, each once whatever its names.
pub(super) fn find(path: &OsStr) -> Vec<Tool> {
    let mut seen = Vec::new();
    let tools = NAMES.into_iter().filter_map(|name| {
        let v4 = programs(path, name)?;
        let file = fs::canonicalize(&v4.restore).ok()?;
        if seen.contains(&file) {
            return None;
        }
        let kernel = kernel(&v4.restore, &file);
        seen.push(file);
        Some(Tool { name, kernel, v4, v6: programs(path, &name.replacen("ip", "ip6", 1)) })
    });
    tools.collect()
}

fn programs(path: &OsStr, name: &str) -> Option<Programs> {
    let find = |program: &str| {
        env::split_paths(path).map(|dir| dir.join(program)).find(|file| {
            fs::metadata(file).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
        })
    };
    Some(Programs {
        restore: find(&format!("{name}-restore"))?,
        save: find(&format!("{name}-save"))?,
    })
}

/// By the name of the file behind the links, else by what it says; before 1.8 there was only one.
fn kernel(restore: &Path, file: &Path) -> Kernel {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let nft = if name.contains("legacy") {
        false
    } else if name.contains("nft") {
        true
    } else {
        let version = Command::new(restore).arg("--version").stderr(Stdio::null()).output();
        version.is_ok_and(|v| String::from_utf8_lossy(&v.stdout).contains("nf_tables"))
    };
    if nft { Kernel::Nft } else { Kernel::Legacy }
}

impl Tool {
    /// Puts the rules in force in these families, in place of former ones. Each family changes at
    /// once and as a whole; where one fails, those before it become again what they were.
    pub(super) fn replace(&self, rules: &Rules, families: &[Family]) -> Result<(), IptablesError> {
        let mut changes = Vec::new();
        for &family in families {
            let programs = self.programs(family).ok_or_else(|| IptablesError::MissingV6 {
                program: format!("{}-restore", self.name.replacen("ip", "ip6", 1)),
            })?;
            let (before, wanted) = (self.ours(family, programs)?, Ours::wanted(rules, family));
            if let Some(script) = before.change(&wanted) {
                programs.restore(&script, true)?;
                changes.push((programs, script, wanted.change(&before)));
            }
        }
        for (at, (programs, script, _)) in changes.iter().enumerate() {
            if let Err(error) = programs.restore(script, false) {
                for (programs, _, back) in &changes[..at] {
                    // What failed first is told; the next run starts from whatever is there.
                    _ = back.as_ref().map(|back| programs.restore(back, false));
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Removes what is ours, in both families. `Some` where it cannot say what that is.
    pub(super) fn remove(&self) -> Result<Option<IptablesError>, IptablesError> {
        let mut unknown = None;
        for family in [Family::V4, Family::V6] {
            let Some(programs) = self.programs(family) else { continue };
            match self.ours(family, programs) {
                Ok(there) => {
                    if let Some(script) = there.change(&Ours::default()) {
                        programs.restore(&script, false)?;
                    }
                }
                Err(error) => unknown = Some(error),
            }
        }
        Ok(unknown)
    }

    fn programs(&self, family: Family) -> Option<&Programs> {
        match family {
            Family::V4 => Some(&self.v4),
            Family::V6 => self.v6.as_ref(),
        }
    }

    fn ours(&self, family: Family, programs: &Programs) -> Result<Ours, IptablesError> {
        // Looking at a table of ip_tables would make it.
        if self.kernel == Kernel::Legacy && !legacy_nat(family) {
            return Ok(Ours::default());
        }
        run(&programs.save, &["-t", "nat"], "").map(|saved| Ours::parse(&saved))
    }
}

/// Whether this network namespace has a `nat` table of ip_tables.
fn legacy_nat(family: Family) -> bool {
    let file = match family {
        Family::V4 => "/proc/thread-self/net/ip_tables_names",
        Family::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    fs::read_to_string(file).is_ok_and(|names| names.lines().any(|name| name == "nat"))
}

impl Programs {
    fn restore(&self, script: &str, only_try: bool) -> Result<(), IptablesError> {
        let flags: &[&str] = &["--noflush", "--wait", LOCK_WAIT, "--test"];
        let flags = if only_try { flags } else { &flags[..3] };
        run(&self.restore, flags, script).map(drop)
    }
}

/// Blocks until the program ends, which it does by itself: it waits for nothing but the lock.
fn run(program: &Path, flags: &[&str], input: &str) -> Result<String, IptablesError> {
    let fail = |error| IptablesError::Run { program: program.to_owned(), error };
    let mut command = Command::new(program);
    command.args(flags).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if env::var_os(LOCK).is_none() && !default_lock_opens() {
        // Nobody who shares this read-only file system could take that lock either; any file will do.
        command.env(LOCK, program);
    }
    let mut child = command.spawn().map_err(fail)?;
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().map_err(fail)?;
    if !output.status.success() {
        let said = said(&String::from_utf8_lossy(&output.stderr), input);
        return Err(IptablesError::Refused { program: program.to_owned(), said });
    }
    // One that has succeeded without reading all of it is none of ours.
    written.map_err(fail)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn default_lock_opens() -> bool {
    fs::File::options().append(true).create(true).open("/run/xtables.lock").is_ok()
}

/// What the program complains of, in one line; a line number becomes the line.
fn said(stderr: &str, input: &str) -> String {
    const LONGEST: usize = 300;
    let lines = stderr.lines().map(str::trim);
    let lines: Vec<&str> =
        lines.filter(|line| !line.is_empty() && !line.starts_with("Try `")).collect();
    let mut text = lines.join(" ");
    let number = text.split("line ").nth(1).and_then(|rest| {
        rest.split(|c: char| !c.is_ascii_digit()).next()?.parse::<usize>().ok()?.checked_sub(1)
    });
    if let Some(line) = number.and_then(|at| input.lines().nth(at)) {
        text = format!("{text} ({line:?})");
    }
    match text.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

/// Families that this network namespace speaks.
pub(super) fn families() -> Vec<Family> {
    let off = fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6");
    match off.as_deref().map(str::trim) {
        Err(_) | Ok("1") => vec![Family::V4],
        Ok(_) => vec![Family::V6, Family::V4],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_number_is_told_as_the_line() {
        let said = said("iptables-restore: line 2 failed\n", "*nat\n-A X -j Y\nCOMMIT\n");
        assert_eq!(said, "iptables-restore: line 2 failed (\"-A X -j Y\")");
        assert_eq!(super::said("a\n\n b\n", ""), "a b");
    }
}
