//! Our part of the `nat` table of iptables, and the transaction that changes it.

use std::fmt::Write;

use ipnet::IpNet;

use super::super::rules::{Except, Rules, Way};

/// iptables has a table, and programs, for each family of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

/// Our chains, and the built-in ones that jump to them.
const CHAINS: [(&str, &str); 2] = [("REMORA_OUTBOUND", "OUTPUT"), ("REMORA_INBOUND", "PREROUTING")];

/// What is ours in the table of one family; by default nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ours([Chain; 2]);

/// One of [`CHAINS`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Chain {
    /// Its rules as `-A NAME …`; `None` where there is no such chain.
    rules: Option<Vec<String>>,
    /// Rules of the built-in chain that do nothing but jump to it.
    jumps: usize,
}

impl Ours {
    /// What has to be there for these rules.
    pub(super) fn wanted(rules: &Rules, family: Family) -> Self {
        let chain = |at: usize, way: &Way| Chain {
            rules: Some(lines(CHAINS[at].0, way, family)),
            jumps: 1,
        };
        Self([chain(0, &rules.outbound), chain(1, &rules.inbound)])
    }

    /// What is there, by the output of `iptables-save -t nat`.
    pub(super) fn parse(saved: &str) -> Self {
        Self(CHAINS.map(|(name, built_in)| {
            let (head, rule) = (format!(":{name} "), format!("-A {name} "));
            let jump = format!("-A {built_in} -j {name}");
            let rules = || {
                let rules = saved.lines().filter(|line| line.starts_with(&rule));
                rules.map(str::to_owned).collect()
            };
            Chain {
                rules: saved.lines().any(|line| line.starts_with(&head)).then(rules),
                jumps: saved.lines().filter(|line| line.trim_end() == jump).count(),
            }
        }))
    }

    /// The transaction that makes `to` of this and touches nothing else, as input of
    /// `iptables-restore --noflush`; `None` where there is nothing to do.
    ///
    /// Jumps stand first in the built-in chains, as the last table to be written stands first among
    /// those of nf_tables.
    pub(super) fn change(&self, to: &Self) -> Option<String> {
        let nothing = Self::default();
        if *self == nothing && *to == nothing {
            return None;
        }
        let mut script = String::from("*nat\n");
        let mut line = |text: String| {
            script.push_str(&text);
            script.push('\n');
        };
        // A chain that is there is flushed by its declaration.
        for ((name, _), to) in CHAINS.iter().zip(&to.0) {
            if to.rules.is_some() {
                line(format!(":{name} - [0:0]"));
            }
        }
        for (((name, built_in), from), to) in CHAINS.iter().zip(&self.0).zip(&to.0) {
            for _ in to.jumps..from.jumps {
                line(format!("-D {built_in} -j {name}"));
            }
            match &to.rules {
                Some(rules) => rules.iter().cloned().for_each(&mut line),
                None if from.rules.is_some() => {
                    line(format!("-F {name}"));
                    line(format!("-X {name}"));
                }
                None => {}
            }
            for _ in from.jumps..to.jumps {
                line(format!("-I {built_in} 1 -j {name}"));
            }
        }
        line("COMMIT".to_owned());
        Some(script)
    }
}

/// The rules of one chain; networks of the other family are left out.
fn lines(name: &str, way: &Way, family: Family) -> Vec<String> {
    let exceptions = way.except.iter().filter_map(|except| condition(except, family));
    let mut lines: Vec<String> =
        exceptions.map(|condition| format!("-A {name} {condition} -j RETURN")).collect();
    lines.push(format!("-A {name} -p tcp -j REDIRECT --to-ports {}", way.to));
    lines
}

fn condition(except: &Except, family: Family) -> Option<String> {
    let ours = |net: &IpNet| matches!(net, IpNet::V4(_)) == (family == Family::V4);
    Some(match except {
        Except::Uid(uid) => format!("-m owner --uid-owner {uid}"),
        Except::Mark(mark) => format!("-m mark --mark {mark:#x}"),
        Except::ToLoopback => "-o lo".to_owned(),
        Except::FromLoopback => "-i lo".to_owned(),
        Except::Source(net) | Except::Destination(net) if !ours(net) => return None,
        Except::Source(net) => format!("-s {}", net.trunc()),
        Except::Destination(net) => format!("-d {}", net.trunc()),
        Except::Ports(ports) => {
            let mut text = format!("-p tcp -m tcp --dport {}", ports.start());
            if ports.end() > ports.start() {
                // Writing to a string does not fail.
                _ = write!(text, ":{}", ports.end());
            }
            text
        }
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::redirect::{Exempt, RedirectConfig};

    #[test]
    fn rules_of_each_family_have_that_familys_networks() {
        let config = RedirectConfig {
            exempt: Exempt::Mark(0x2102),
            skip_inbound: "22,8000-8010".parse().unwrap(),
            skip_outbound: "5432".parse().unwrap(),
            skip_subnets: vec!["10.1.2.3/8".parse().unwrap(), "fd00::/8".parse().unwrap()],
            ..RedirectConfig::default()
        };
        let script = |family| {
            let wanted = Ours::wanted(&config.rules(), family);
            Ours::default().change(&wanted).unwrap()
        };
        assert_eq!(
            script(Family::V4),
            "*nat
:REMORA_OUTBOUND - [0:0]
:REMORA_INBOUND - [0:0]
-A REMORA_OUTBOUND -m mark --mark 0x2102 -j RETURN
-A REMORA_OUTBOUND -o lo -j RETURN
-A REMORA_OUTBOUND -d 10.0.0.0/8 -j RETURN
-A REMORA_OUTBOUND -p tcp -m tcp --dport 5432 -j RETURN
-A REMORA_OUTBOUND -p tcp -j REDIRECT --to-ports 4140
-I OUTPUT 1 -j REMORA_OUTBOUND
-A REMORA_INBOUND -i lo -j RETURN
-A REMORA_INBOUND -s 10.0.0.0/8 -j RETURN
-A REMORA_INBOUND -p tcp -m tcp --dport 4143 -j RETURN
-A REMORA_INBOUND -p tcp -m tcp --dport 4191 -j RETURN
-A REMORA_INBOUND -p tcp -m tcp --dport 22 -j RETURN
-A REMORA_INBOUND -p tcp -m tcp --dport 8000:8010 -j RETURN
-A REMORA_INBOUND -p tcp -j REDIRECT --to-ports 4143
-I PREROUTING 1 -j REMORA_INBOUND
COMMIT
"
        );
        assert_eq!(
            script(Family::V6),
            script(Family::V4).replace("10.0.0.0/8", "fd00::/8"),
            "the same but for the network"
        );
    }

    #[test]
    fn where_nothing_is_ours_there_is_nothing_to_remove() {
        let saved = "*nat\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:REMORA_OUTBOUND_X - [0:0]\n\
                     -A OUTPUT -j REMORA_OUTBOUND_X\n-A REMORA_OUTBOUND_X -j RETURN\nCOMMIT\n";
        let there = Ours::parse(saved);
        assert_eq!(there, Ours::default());
        assert_eq!(there.change(&Ours::default()), None);
    }

    /// As much of the `nat` table as our transactions use: chains of rules.
    #[derive(Debug, Clone)]
    struct Nat(BTreeMap<String, Vec<String>>);

    impl Nat {
        fn run(&mut self, script: &str) {
            let body = script.strip_prefix("*nat\n").unwrap().strip_suffix("COMMIT\n").unwrap();
            for line in body.lines() {
                if let Some(head) = line.strip_prefix(':') {
                    self.0.insert(head.split(' ').next().unwrap().to_owned(), Vec::new());
                    continue;
                }
                let mut words = line.splitn(3, ' ');
                let (verb, name) = (words.next().unwrap(), words.next().unwrap());
                let rest = words.next().unwrap_or_default();
                let chain = self.0.get_mut(name).unwrap_or_else(|| panic!("{line}: no chain"));
                match verb {
                    "-A" => chain.push(rest.to_owned()),
                    "-I" => chain.insert(0, rest.strip_prefix("1 ").unwrap().to_owned()),
                    "-D" => {
                        let at = chain.iter().position(|rule| rule == rest);
                        chain.remove(at.unwrap_or_else(|| panic!("{line}: no such rule")));
                    }
                    "-F" => chain.clear(),
                    "-X" => {
                        assert!(chain.is_empty(), "{line}");
                        self.0.remove(name);
                        let jump = format!("-j {name}");
                        assert!(!self.0.values().flatten().any(|rule| *rule == jump), "{line}");
                    }
                    _ => panic!("{line}"),
                }
            }
        }

        fn saved(&self) -> String {
            let heads = self.0.keys().map(|name| format!(":{name} - [0:0]\n"));
            let rules = self.0.iter().flat_map(|(name, rules)| {
                rules.iter().map(move |rule| format!("-A {name} {rule}\n"))
            });
            heads.chain(rules).collect()
        }

        /// What is not ours, in its order.
        fn foreign(&self) -> Vec<(String, String)> {
            let ours = |name: &str| CHAINS.iter().any(|(ours, _)| *ours == name);
            let jumps = |rule: &str| CHAINS.iter().any(|(ours, _)| rule == format!("-j {ours}"));
            let chains = self.0.iter().filter(|(name, _)| !ours(name));
            chains
                .flat_map(|(name, rules)| {
                    rules.iter().map(move |rule| (name.clone(), rule.clone()))
                })
                .filter(|(_, rule)| !jumps(rule))
                .collect()
        }
    }

    /// Rules of somebody else with jumps of ours anywhere between them.
    fn built_in(at: usize) -> impl Strategy<Value = Vec<String>> {
        let rule = prop_oneof![
            Just("-d 127.0.0.11/32 -j DOCKER".to_owned()),
            Just("-p udp -m udp --dport 53 -j REDIRECT --to-ports 5353".to_owned()),
            Just(format!("-j {}", CHAINS[at].0)),
            Just(format!("-p tcp -j {}_NOT", CHAINS[at].0)),
        ];
        prop::collection::vec(rule, 0..5)
    }

    proptest! {
        #[test]
        fn any_state_becomes_the_wanted_one_and_what_is_foreign_stays(
            (output, prerouting) in (built_in(0), built_in(1)),
            chains in prop::array::uniform2(prop::option::of(0..3usize)),
            keep in any::<bool>(),
        ) {
            let mut nat = Nat(BTreeMap::new());
            nat.0.insert("OUTPUT".to_owned(), output);
            nat.0.insert("PREROUTING".to_owned(), prerouting);
            nat.0.insert("DOCKER".to_owned(), vec!["-j RETURN".to_owned()]);
            for ((name, built_in), rules) in CHAINS.iter().zip(chains) {
                match rules {
                    Some(n) => drop(nat.0.insert((*name).to_owned(), vec!["-j RETURN".into(); n])),
                    // Nothing jumps to a chain that is not there.
                    None => {
                        let jump = format!("-j {name}");
                        nat.0.get_mut(*built_in).unwrap().retain(|rule| *rule != jump);
                    }
                }
            }
            let before = nat.clone();
            let wanted = if keep {
                Ours::wanted(&RedirectConfig::default().rules(), Family::V4)
            } else {
                Ours::default()
            };
            let there = Ours::parse(&nat.saved());
            if let Some(script) = there.change(&wanted) {
                nat.run(&script);
            }
            prop_assert_eq!(Ours::parse(&nat.saved()), wanted.clone());
            prop_assert_eq!(nat.foreign(), before.foreign());
            // Once more changes nothing, and the way back ends where it began.
            let after = nat.saved();
            if let Some(script) = wanted.change(&wanted) {
                nat.run(&script);
            }
            prop_assert_eq!(nat.saved(), after);
            if let Some(script) = wanted.change(&there) {
                nat.run(&script);
            }
            prop_assert_eq!(Ours::parse(&nat.saved()), there);
        }
    }
}
