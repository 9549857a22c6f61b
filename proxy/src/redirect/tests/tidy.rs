//! Rules that come and go: again, in place of others, beside those of others, and not at all.

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
};

use super::{
    super::{
        backend::{self, Backend},
        nft::{Action, Base, Chain, Hook, Kind, Match, NftError, Rule, Table},
    },
    namespace::{NODE, NODE_V6, Pod, inside},
    writer::{Writer, each, ruleset, with_both_iptables},
    *,
};

/// Rules of somebody else, in the very tables and chains that ours go to: a DNS redirection, a chain
/// of their own, a rule that only looks like ours.
const FOREIGN: &str = "*nat
:DOCKER_OUTPUT - [0:0]
:REMORA_OUTBOUND_BACKUP - [0:0]
-A OUTPUT -p udp -m udp --dport 53 -j REDIRECT --to-ports 5353
-A OUTPUT -p tcp -m tcp --dport 9 -j DOCKER_OUTPUT
-A PREROUTING -p tcp -m tcp --dport 7 -j REDIRECT --to-ports 8
-A DOCKER_OUTPUT -p tcp -j REDIRECT --to-ports 10
-A REMORA_OUTBOUND_BACKUP -j RETURN
COMMIT
";

/// Puts rules of somebody else there by each program of iptables, and by nf_tables.
fn foreign_rules(rules: &Writer) {
    for entry in fs::read_dir(rules.path.path()).unwrap() {
        let program = entry.unwrap().path();
        if program.to_str().unwrap().ends_with("-restore") {
            let mut child =
                Command::new(&program).arg("--noflush").stdin(Stdio::piped()).spawn().unwrap();
            io::Write::write_all(&mut child.stdin.take().unwrap(), FOREIGN.as_bytes()).unwrap();
            assert!(child.wait().unwrap().success(), "{}", program.display());
        }
    }
    let rule = Rule { matches: vec![Match::ToLoopback, Match::Tcp], action: Action::Accept };
    let base = Base { kind: Kind::Nat, hook: Hook::Output, priority: -90 };
    let chain = Chain { name: "output".to_owned(), base: Some(base), rules: vec![rule] };
    nft::replace(&Table { name: "remora-of-others", chains: vec![chain] }).unwrap();
}

#[test]
fn foreign_rules_survive_and_a_second_run_changes_nothing() {
    let test = "redirect::tests::tidy::foreign_rules_survive_and_a_second_run_changes_nothing";
    each(test, |rules| {
        if !rules.is_readable() {
            return;
        }
        Pod::new(2).run(move || {
            foreign_rules(&rules);
            let before = ruleset();
            rules.apply(&marked());
            let applied = ruleset();
            assert_ne!(applied, before);
            rules.apply(&marked());
            assert_eq!(ruleset(), applied, "{}", rules.name);
            // Others in place of them, and back.
            rules.apply(&RedirectConfig { skip_inbound: "22".parse().unwrap(), ..marked() });
            assert_ne!(ruleset(), applied);
            rules.apply(&marked());
            assert_eq!(ruleset(), applied, "{}", rules.name);
            let foreign = |all: &str| -> Vec<String> {
                let lines = all.lines().filter(|line| before.lines().any(|known| known == *line));
                lines.map(str::to_owned).collect()
            };
            for line in foreign(&before) {
                assert!(applied.lines().any(|l| *l == line), "{}: {line} is gone", rules.name);
            }
            rules.remove();
            assert_eq!(ruleset(), before, "{}", rules.name);
            rules.remove();
            assert_eq!(ruleset(), before, "{}", rules.name);
        });
    });
}

#[test]
fn removal_lets_connections_through_and_may_be_repeated() {
    let test = "redirect::tests::tidy::removal_lets_connections_through_and_may_be_repeated";
    each(test, |rules| {
        let server = listen(NODE, 80);
        let server_v6 = listen(Ipv6Addr::UNSPECIFIED, 81);
        let pod = Pod::new(2);
        pod.run(move || {
            rules.remove();
            rules.apply(&marked());
            assert_eq!(dial((NODE, 80), 0).err(), Some(ErrorKind::ConnectionRefused));
            rules.remove();
            rules.remove();
            let left = ruleset();
            assert!(!left.to_lowercase().contains("remora"), "{}: {left}", rules.name);
            assert!(!left.contains("-A "), "{}: {left}", rules.name);
        });
        assert!(reached(&server, &pod.run(|| dial((NODE, 80), 0).unwrap())));
        assert!(reached(&server_v6, &pod.run(|| dial((NODE_V6, 81), 0).unwrap())));
    });
}

/// How many kinds of rules of ours there are.
fn kinds(ruleset: &str) -> [bool; 2] {
    [ruleset.contains("table inet remora"), ruleset.contains("-A REMORA_OUTBOUND ")]
}

/// Puts a script in the place of a program.
fn fake(program: &Path, body: &str) {
    fs::remove_file(program).unwrap();
    fs::write(program, format!("#!/bin/sh\ncat >/dev/null\n{body}\n")).unwrap();
    fs::set_permissions(program, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn another_backend_takes_the_place_of_the_one_before() {
    let test = "redirect::tests::tidy::another_backend_takes_the_place_of_the_one_before";
    with_both_iptables(test, |legacy, by_nft| {
        Pod::new(2).run(move || {
            // The programs of both, as on a machine of Debian.
            let iptables = Writer::of(Backend::Iptables, &[&legacy, &by_nft]);
            let nft = Writer::of(Backend::Nft, &[&legacy, &by_nft]);
            for _ in 0..2 {
                iptables.apply(&marked());
                assert_eq!(kinds(&ruleset()), [false, true]);
                nft.apply(&marked());
                assert_eq!(kinds(&ruleset()), [true, false]);
            }
            // What iptables-nft left is replaced by iptables-legacy, not doubled.
            by_nft.apply(&marked());
            let written = iptables.try_apply(&marked()).unwrap().to_string();
            assert_eq!(written, "rules in force by iptables-legacy");
            assert_eq!(ruleset().matches("-j REMORA_OUTBOUND\n").count(), 2, "one for each family");
            iptables.remove();
            assert_eq!(kinds(&ruleset()), [false, false]);
            // Where iptables-legacy cannot, which is told.
            let restore = iptables.path.path().join("ip6tables-legacy-restore");
            fake(&restore, "echo no such table >&2; exit 1");
            let line = iptables.try_apply(&marked()).unwrap().to_string();
            assert!(line.starts_with("rules in force by iptables; tried first: /"), "{line}");
            assert!(line.contains("no such table"), "{line}");
            assert_eq!(kinds(&ruleset()), [false, true]);
        });
    });
}

#[test]
fn auto_takes_iptables_only_where_the_kernel_has_no_nf_tables_and_says_so() {
    let test = "redirect::tests::tidy::auto_takes_iptables_only_where_the_kernel_has_no_nf_tables_and_says_so";
    with_both_iptables(test, |legacy, _| {
        Pod::new(2).run(move || {
            let (rules, path) = (marked().rules(), legacy.path.path().as_os_str());
            let written = backend::apply(&rules, Backend::Auto, path).unwrap();
            assert_eq!(written.to_string(), "rules in force by nftables");
            assert_eq!(kinds(&ruleset()), [true, false]);

            let unsupported = |_: &Table| {
                let errno = nix::errno::Errno::EOPNOTSUPP;
                Err(NftError::Unsupported { what: "table inet remora".into(), errno })
            };
            let written = backend::apply_with(&rules, Backend::Auto, path, unsupported).unwrap();
            let line = written.to_string();
            let expected = "rules in force by iptables-legacy; tried first: cannot write";
            assert!(line.starts_with(expected), "{line}");
            assert_eq!(kinds(&ruleset()), [false, true]);

            // Any other refusal is a refusal.
            let refused = |_: &Table| {
                Err(NftError::Refused { what: "x".into(), errno: nix::errno::Errno::EINVAL })
            };
            assert!(backend::apply_with(&rules, Backend::Auto, path, refused).is_err());
            assert_eq!(kinds(&ruleset()), [false, true]);
        });
    });
}

#[test]
fn a_refusal_leaves_the_former_rules_of_both_families() {
    let test = "redirect::tests::tidy::a_refusal_leaves_the_former_rules_of_both_families";
    each(test, |rules| {
        if !rules.is_readable() {
            return;
        }
        Pod::new(2).run(move || {
            rules.apply(&marked());
            let before = ruleset();
            if rules.backend == Backend::Nft {
                // Only chains of type nat may redirect.
                let mut table = marked().rules().table();
                table.chains[1].base.as_mut().unwrap().kind = Kind::Filter;
                let error = nft::replace(&table).unwrap_err();
                assert_eq!(ruleset(), before, "{error}");
                return;
            }
            // A user that this user namespace does not know.
            let unknown = RedirectConfig { exempt: Exempt::Uid(2102), ..marked() };
            let error = rules.try_apply(&unknown).unwrap_err();
            assert_eq!(ruleset(), before, "{error}");
            // IPv6 is written first; what fails after it takes it back.
            let v4 = rules.path.path().join(match rules.name {
                "iptables-legacy" => "iptables-legacy-restore",
                _ => "iptables-restore",
            });
            fake(
                &v4,
                "case \"$*\" in *--version*) echo '(nf_tables)'; exit 0;; *--test*) exit 0;; esac\n\
                 echo line 2 failed >&2; exit 1",
            );
            let other = RedirectConfig { skip_outbound: "5432".parse().unwrap(), ..marked() };
            let error = rules.try_apply(&other).unwrap_err().to_string();
            assert!(error.contains("line 2 failed (\":REMORA_OUTBOUND - [0:0]\")"), "{error}");
            assert_eq!(ruleset(), before);
        });
    });
}

#[test]
fn without_programs_the_error_says_which_and_what_to_do() {
    let test = "redirect::tests::tidy::without_programs_the_error_says_which_and_what_to_do";
    each(test, |rules| {
        if rules.backend == Backend::Nft {
            return;
        }
        Pod::new(2).run(move || {
            for entry in fs::read_dir(rules.path.path()).unwrap().map(Result::unwrap) {
                if entry.file_name().to_str().unwrap().starts_with("ip6") {
                    fs::remove_file(entry.path()).unwrap();
                }
            }
            let error = rules.try_apply(&marked()).unwrap_err().to_string();
            assert!(error.contains("IPv6 is on") && error.contains("disable_ipv6=1"), "{error}");
            assert_eq!(kinds(&ruleset()), [false, false], "nor half of it");

            fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap();
            rules.apply(&marked());
            let proxy = listen(Ipv4Addr::LOCALHOST, 4140);
            let to = SocketAddr::from(([192, 0, 2, 1], 80));
            let _client = dial(to, 0).unwrap();
            assert_eq!(original_destination(&proxy), to);

            let nowhere = tempfile::tempdir().unwrap();
            let error =
                backend::apply(&marked().rules(), Backend::Iptables, nowhere.path().as_os_str());
            let error = error.unwrap_err().to_string();
            assert!(
                error.contains("iptables-legacy-restore") && error.contains("--backend nft"),
                "{error}"
            );
        });
    });
}

#[test]
fn without_privilege_the_error_says_what_is_missing() {
    let test = "redirect::tests::tidy::without_privilege_the_error_says_what_is_missing";
    inside(&["-r"], test, || {
        let error = backend::remove("".as_ref()).unwrap_err().to_string();
        assert_eq!(
            error,
            "cannot write table inet remora: permission denied; needs CAP_NET_ADMIN in the pod's \
             network namespace"
        );
        let path = std::env::var_os("PATH").unwrap();
        match backend::apply(&marked().rules(), Backend::Iptables, &path) {
            Err(BackendError::Iptables(iptables::IptablesError::Missing)) => {}
            Err(error) => assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}"),
            Ok(written) => panic!("{written}"),
        }
    });
}
