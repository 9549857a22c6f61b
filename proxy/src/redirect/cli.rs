//! `remora redirect`, which is also what the init container runs.

use std::{
    env,
    io::{self, Write},
};

use clap::{ArgGroup, Subcommand};
use ipnet::IpNet;
use remora_core::{
    names::{PROXY_UID, ports},
    settings::{PortSet, parse_subnets},
};

use super::{
    Backend, BackendError, Exempt, RedirectConfig, backend, iptables,
    node::{self, AgentArgs, AgentError, AskArgs, AskError},
};

/// Turn this network namespace's TCP connections to the proxy.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Subcommand)]
enum Command {
    /// Put the rules in force, in place of former ones.
    Apply(Apply),
    /// Remove the rules, whatever wrote them.
    Remove,
    /// Ask the node's agent for the rules, where this process may not write them.
    Ask(AskArgs),
    /// Write the rules of the pods of this node that ask.
    Agent(AgentArgs),
}

#[derive(Debug, Clone, clap::Args)]
struct Apply {
    #[command(flatten)]
    rules: Rules,
    /// What writes them: nft (nf_tables, over netlink), iptables (its programs), or auto (nft, where
    /// the kernel has nf_tables; else iptables).
    #[arg(long, value_name = "BACKEND", default_value_t)]
    backend: Backend,
    /// Show the rules in the backend's language and change nothing.
    #[arg(long)]
    print: bool,
}

/// What is intercepted.
#[derive(Debug, Clone, clap::Args)]
#[command(group(ArgGroup::new("exempt").args(["proxy_uid", "proxy_mark"])))]
pub(super) struct Rules {
    /// Port of the proxy's outbound listener.
    #[arg(long, value_name = "PORT", default_value_t = ports::OUTBOUND)]
    outbound_port: u16,
    /// Port of the proxy's inbound listener.
    #[arg(long, value_name = "PORT", default_value_t = ports::INBOUND)]
    inbound_port: u16,
    /// Port of the proxy's admin endpoint; never intercepted.
    #[arg(long, value_name = "PORT", default_value_t = ports::PROXY_ADMIN)]
    admin_port: u16,
    /// User the proxy runs as; its connections are not intercepted [default: 2102].
    #[arg(long, value_name = "UID")]
    proxy_uid: Option<u32>,
    /// Mark of the proxy's connections, as in 0x2102, where its user cannot tell them apart.
    #[arg(long, value_name = "MARK", value_parser = parse_mark)]
    proxy_mark: Option<u32>,
    /// Ports on which the application is reached directly, as in 22,8000-8010.
    #[arg(long, value_name = "PORTS", default_value = "")]
    skip_inbound_ports: PortSet,
    /// Ports that the application dials directly.
    #[arg(long, value_name = "PORTS", default_value = "")]
    skip_outbound_ports: PortSet,
    /// Networks that are not intercepted in either direction, as in 10.0.0.0/8,fd00::/8.
    #[arg(long, value_name = "CIDRS", value_delimiter = ',', value_parser = parse_subnet)]
    skip_subnets: Vec<IpNet>,
}

/// What keeps the rules from being in force, or the agent from its work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused, or a program of iptables.
    #[error(transparent)]
    Rules(#[from] BackendError),
    /// The node's agent was not reached or refused.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The agent cannot work.
    #[error(transparent)]
    Agent(#[from] AgentError),
}

/// Does what the command line says, on this process's network namespace.
///
/// # Errors
/// Says what stands in the way.
pub fn run(args: &Args) -> Result<(), Error> {
    let path = env::var_os("PATH").unwrap_or_default();
    match &args.command {
        Command::Remove => backend::remove(&path)?,
        Command::Apply(options) if options.print => {
            let rules = options.rules.config().rules();
            let text = match options.backend {
                Backend::Nft | Backend::Auto => rules.table().to_string(),
                Backend::Iptables => iptables::print(&rules),
            };
            // Nobody to tell where standard output is closed.
            _ = io::stdout().write_all(text.as_bytes());
        }
        Command::Apply(options) => {
            let written = backend::apply(&options.rules.config().rules(), options.backend, &path)?;
            eprintln!("redirect: {written}");
        }
        Command::Ask(options) => node::ask(options)?,
        Command::Agent(options) => node::agent(options)?,
    }
    Ok(())
}

impl Rules {
    /// The flags that say the same.
    pub(super) fn flags(&self) -> Vec<String> {
        let mut flags = vec![
            format!("--outbound-port={}", self.outbound_port),
            format!("--inbound-port={}", self.inbound_port),
            format!("--admin-port={}", self.admin_port),
            format!("--skip-inbound-ports={}", self.skip_inbound_ports),
            format!("--skip-outbound-ports={}", self.skip_outbound_ports),
        ];
        flags.extend(self.proxy_uid.map(|uid| format!("--proxy-uid={uid}")));
        flags.extend(self.proxy_mark.map(|mark| format!("--proxy-mark={mark}")));
        flags.extend(self.skip_subnets.iter().map(|net| format!("--skip-subnets={net}")));
        flags
    }

    /// What they say.
    pub(super) fn config(&self) -> RedirectConfig {
        RedirectConfig {
            outbound_port: self.outbound_port,
            inbound_port: self.inbound_port,
            admin_port: self.admin_port,
            exempt: match self.proxy_mark {
                Some(mark) => Exempt::Mark(mark),
                None => Exempt::Uid(self.proxy_uid.unwrap_or(PROXY_UID)),
            },
            skip_inbound: self.skip_inbound_ports.clone(),
            skip_outbound: self.skip_outbound_ports.clone(),
            skip_subnets: self.skip_subnets.clone(),
        }
    }
}

fn parse_mark(s: &str) -> Result<u32, String> {
    let parsed = match s.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16),
        None => s.parse(),
    };
    // A mark of 0 is what every unmarked socket has: it would exempt everything.
    match parsed {
        Ok(mark) if mark > 0 => Ok(mark),
        _ => Err(format!("{s:?} is no mark; use a number from 1 to 0xffffffff, as in 0x2102")),
    }
}

fn parse_subnet(s: &str) -> Result<IpNet, String> {
    parse_subnets(s)?.pop().ok_or_else(|| "empty; use CIDR as in 10.0.0.0/8".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        args: Args,
    }

    fn parse(words: &str) -> Result<RedirectConfig, clap::Error> {
        let program = Program::try_parse_from(words.split(' '))?;
        let Command::Apply(options) = program.args.command else { panic!("not apply") };
        let config = options.rules.config();
        // What is sent to a node's agent says the same as what was given.
        let again = Program::try_parse_from(
            ["redirect", "apply"].into_iter().map(str::to_owned).chain(options.rules.flags()),
        )?;
        let Command::Apply(again) = again.args.command else { panic!("not apply") };
        assert_eq!(again.rules.config(), config);
        Ok(config)
    }

    #[test]
    fn flags_say_what_to_skip() {
        let config = parse(
            "redirect apply --proxy-mark 0x2102 --skip-inbound-ports 22,80-81 \
             --skip-outbound-ports 5432 --skip-subnets 10.0.0.0/8,fd00::/8",
        )
        .unwrap();
        assert_eq!(
            config,
            RedirectConfig {
                exempt: Exempt::Mark(0x2102),
                skip_inbound: "22,80-81".parse().unwrap(),
                skip_outbound: "5432".parse().unwrap(),
                skip_subnets: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()],
                ..RedirectConfig::default()
            }
        );
        assert_eq!(parse("redirect apply").unwrap(), RedirectConfig::default());
    }

    #[test]
    fn nf_tables_writes_the_rules_unless_another_is_asked_for() {
        for (words, expected) in [
            ("redirect apply", Backend::Nft),
            ("redirect apply --backend iptables", Backend::Iptables),
            ("redirect apply --backend auto", Backend::Auto),
        ] {
            let program = Program::try_parse_from(words.split(' ')).unwrap();
            let Command::Apply(options) = program.args.command else { panic!("not apply") };
            assert_eq!(options.backend, expected);
        }
    }

    #[test]
    fn wrong_flags_are_refused() {
        for bad in [
            "redirect apply --backend ebtables",
            "redirect apply --proxy-mark 0",
            "redirect apply --proxy-mark 1 --proxy-uid 2",
            "redirect apply --skip-subnets 10.0.0.0/40",
            "redirect apply --skip-inbound-ports 9-1",
            "redirect apply --outbound-port 70000",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
