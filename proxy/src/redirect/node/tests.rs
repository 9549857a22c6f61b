use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    time::Duration,
};

use remora_core::names::ports;

use super::*;
use crate::redirect::tests::namespace::{NODE, Pod, inside};

/// The agent of a test's node, on a thread of its own for the length of the test.
fn start_agent() -> SocketAddr {
    let listener = TcpListener::bind((NODE, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        let own = namespace::own(Path::new("/proc")).unwrap();
        let node = agent::Node { proc: "/proc".into(), own };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            agent::serve(listener, node.into(), std::future::pending()).await;
        });
    });
    address
}

/// What the agent answers to a line that comes from the calling thread's namespace.
fn say(agent: SocketAddr, line: &str) -> String {
    let mut stream = TcpStream::connect(agent).unwrap();
    stream.write_all(line.as_bytes()).unwrap();
    stream.write_all(b"\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn request(netns: u64, rules: &[&str]) -> String {
    let rules = rules.iter().map(|&rule| rule.to_owned()).collect();
    serde_json::to_string(&Request { netns, rules }).unwrap()
}

fn own_netns() -> u64 {
    namespace::own(Path::new("/proc")).unwrap()
}

#[derive(clap::Parser)]
struct Asker {
    #[command(flatten)]
    args: AskArgs,
}

#[test]
fn the_asker_ends_well_although_the_rules_cut_off_the_first_answer() {
    let test =
        "redirect::node::tests::the_asker_ends_well_although_the_rules_cut_off_the_first_answer";
    inside(&["-rn"], test, || {
        let pod = Pod::new(2);
        let agent = start_agent();
        pod.run(move || {
            let mut sandbox = std::process::Command::new("sleep").arg("60").spawn().unwrap();
            // The asker's user is exempt, as the proxy's is in a cluster.
            let (ip, port) = (agent.ip().to_string(), agent.port().to_string());
            let flags = ["", "--agent-ip", &ip, "--agent-port", &port, "--proxy-uid=0"];
            let asker = <Asker as clap::Parser>::try_parse_from(flags).unwrap();
            ask(&asker.args).unwrap();
            // A second start of the init container.
            ask(&asker.args).unwrap();
            sandbox.kill().unwrap();
            sandbox.wait().unwrap();
        });
    });
}

#[test]
fn no_agent_is_one_line_with_the_mend() {
    let gone = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let port = gone.port().to_string();
    let flags = ["", "--agent-ip=127.0.0.1", "--agent-port", &port, "--timeout=100ms"];
    let asker = <Asker as clap::Parser>::try_parse_from(flags).unwrap();
    let line = ask(&asker.args).unwrap_err().to_string();
    assert!(line.contains(&gone.to_string()) && line.contains("remora-redirect-agent"), "{line}");
}

#[test]
fn a_pod_without_privilege_gets_its_rules_from_the_node_once() {
    let test = "redirect::node::tests::a_pod_without_privilege_gets_its_rules_from_the_node_once";
    inside(&["-rn"], test, || {
        let pod = Pod::new(2);
        let agent = start_agent();
        pod.run(move || {
            // The agent looks for processes, and in this test a pod is but a thread: one that runs
            // for a while stands for its sandbox.
            let mut sandbox = std::process::Command::new("sleep").arg("60").spawn().unwrap();
            // Asking again must reach the agent; in a cluster the asker is the proxy's user.
            let rules = ["--proxy-mark=0x2102", "--skip-subnets=10.244.0.1/32"];
            assert_eq!(say(agent, &request(own_netns(), &rules)), "\"applied\"\n");
            let proxy = TcpListener::bind((Ipv4Addr::LOCALHOST, ports::OUTBOUND)).unwrap();
            let to = SocketAddr::from(([192, 0, 2, 1], 80));
            let _client = TcpStream::connect_timeout(&to, Duration::from_secs(5)).unwrap();
            proxy.accept().unwrap();
            // Whatever is asked for later, the first rules stay.
            let rules = ["--proxy-mark=0x2102", "--skip-outbound-ports=1-65535"];
            assert_eq!(say(agent, &request(own_netns(), &rules)), "\"in-force\"\n");
            let _client = TcpStream::connect_timeout(&to, Duration::from_secs(5)).unwrap();
            proxy.accept().unwrap();
            sandbox.kill().unwrap();
            sandbox.wait().unwrap();
        });
    });
}

#[test]
fn nobody_gets_rules_for_another_network() {
    let test = "redirect::node::tests::nobody_gets_rules_for_another_network";
    inside(&["-rn"], test, || {
        let (pod, other) = (Pod::new(2), Pod::new(3));
        let agent = start_agent();
        let node = own_netns();
        let (mut sandbox, others) = other
            .run(|| (std::process::Command::new("sleep").arg("60").spawn().unwrap(), own_netns()));
        let refused = |netns: u64, why: &str| {
            let why = why.to_owned();
            pod.run(move || {
                let answer = say(agent, &request(netns, &[]));
                assert!(answer.contains("refused") && answer.contains(&why), "{answer}");
            });
        };
        refused(node, "the node's own network");
        refused(others, "does not have the address 10.244.0.2");
        refused(1, "no process of this node lives in network namespace 1");
        pod.run(move || {
            let answer = say(agent, "{}");
            assert!(answer.contains("not understood"), "{answer}");
            let answer = say(agent, &request(1, &["--outbound-port=0x"]));
            assert!(answer.contains("--outbound-port"), "{answer}");
        });
        sandbox.kill().unwrap();
        sandbox.wait().unwrap();
    });
}
