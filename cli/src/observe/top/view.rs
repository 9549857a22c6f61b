//! What `top` shows: Services with their endpoints, sorted and filtered.

use std::cmp::Ordering;

use super::keys::Key;
use crate::observe::{
    merge::{Endpoint, Service, Traffic},
    table::{Align, Colours, Look, Of, Table, known, micros, percent, rate},
};

/// Longest filter.
const MAX_FILTER: usize = 64;

/// What the rows are sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Sort {
    /// Most requests first
    Rps,
    /// Worst success first
    Success,
    /// Slowest median first
    P50,
    /// Slowest p99 first
    P99,
    /// By name
    Name,
}

impl Sort {
    fn word(self) -> &'static str {
        match self {
            Self::Rps => "rps",
            Self::Success => "success",
            Self::P50 => "p50",
            Self::P99 => "p99",
            Self::Name => "name",
        }
    }

    fn of_key(key: char) -> Option<Self> {
        Some(match key {
            'r' => Self::Rps,
            's' => Self::Success,
            'l' => Self::P50,
            'p' => Self::P99,
            'n' => Self::Name,
            _ => return None,
        })
    }

    /// What is nothing comes last.
    fn compare(self, a: &Traffic, b: &Traffic) -> Ordering {
        let most = |a: Option<f64>, b: Option<f64>| {
            b.unwrap_or(f64::NEG_INFINITY).total_cmp(&a.unwrap_or(f64::NEG_INFINITY))
        };
        match self {
            Self::Rps => most(a.requests_per_second, b.requests_per_second),
            Self::Success => {
                let rate = |traffic: &Traffic| traffic.success_rate.unwrap_or(f64::INFINITY);
                rate(a).total_cmp(&rate(b))
            }
            Self::P50 => b.p50_us.cmp(&a.p50_us),
            Self::P99 => b.p99_us.cmp(&a.p99_us),
            Self::Name => Ordering::Equal,
        }
    }
}

/// How it is looked at; keys change it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct View {
    pub(super) sort: Sort,
    /// Part of a Service, pod or address.
    pub(super) filter: String,
    /// The filter is being typed.
    pub(super) typing: bool,
}

impl View {
    /// Whether a key ends it; else what it asks for is done.
    pub(super) fn ends(&mut self, key: Key) -> bool {
        match key {
            Key::Size { .. } => {}
            Key::Enter => self.typing = false,
            Key::Backspace if self.typing => {
                self.filter.pop();
            }
            Key::Backspace => self.filter.clear(),
            Key::Char(c) if self.typing => {
                if self.filter.len() < MAX_FILTER {
                    self.filter.push(c);
                }
            }
            Key::Char('q') => return true,
            Key::Char('/') => {
                self.typing = true;
                self.filter.clear();
            }
            Key::Char(c) => self.sort = Sort::of_key(c).unwrap_or(self.sort),
        }
        false
    }

    /// What can be done, in one line.
    pub(super) fn help(&self) -> String {
        if self.typing {
            return format!("filter: {}_   (Enter keeps it)", self.filter);
        }
        let filter = match self.filter.as_str() {
            "" => String::new(),
            filter => format!(", only {filter:?}"),
        };
        format!(
            "by {}{filter}   q quits; sort by r rps, s success, l p50, p p99, n name; / filters",
            self.sort.word()
        )
    }

    /// The table.
    pub(super) fn lines(&self, services: &[Service], colours: Colours) -> Vec<String> {
        let mut table = Table::new(&[
            ("SERVICE / ENDPOINT", Align::Left),
            ("POD", Align::Left),
            ("RPS", Align::Right),
            ("SUCCESS", Align::Right),
            ("P50", Align::Right),
            ("P99", Align::Right),
            ("IN FLIGHT", Align::Right),
            ("STATE", Align::Left),
            ("WHY", Align::Left),
        ]);
        let mut shown: Vec<(&Service, Vec<&Endpoint>)> =
            services.iter().filter_map(|service| self.matching(service)).collect();
        // Stable: equals stay in the order of their names.
        shown.sort_by(|(a, _), (b, _)| self.sort.compare(&a.traffic, &b.traffic));
        for (service, mut endpoints) in shown {
            let ready = service.endpoints.iter().filter(|endpoint| endpoint.is_ready()).count();
            let all = service.endpoints.len();
            let look = match ready {
                0 => Look::Bad,
                some if some < all => Look::Doubtful,
                _ => Look::Bold,
            };
            let in_flight: u64 = service.endpoints.iter().map(|e| e.in_flight).sum();
            let name = service.id();
            let state = match all {
                0 => "no endpoints".to_owned(),
                all => format!("{} ready", Of(ready, all)),
            };
            table.row(look, cells(name, "", &service.traffic, in_flight, &state, ""));
            endpoints.sort_by(|a, b| self.sort.compare(&a.traffic, &b.traffic));
            for endpoint in endpoints {
                let look = match (endpoint.is_ready(), endpoint.traffic.is_poor()) {
                    (false, _) => Look::Bad,
                    (true, true) => Look::Doubtful,
                    (true, false) => Look::Plain,
                };
                let name = format!("  {}", endpoint.address);
                let state = match endpoint.is_ready() || endpoint.known_to == 1 {
                    true => endpoint.state.clone(),
                    false => {
                        let of = Of(endpoint.seen_by, endpoint.known_to);
                        format!("{} at {of}", endpoint.state)
                    }
                };
                let (pod, why) = (&endpoint.pod, &endpoint.reason);
                table.row(
                    look,
                    cells(name, pod, &endpoint.traffic, endpoint.in_flight, &state, why),
                );
            }
        }
        table.lines(colours)
    }

    /// The Service with those of its endpoints that match; all, where it matches itself.
    fn matching<'a>(&self, service: &'a Service) -> Option<(&'a Service, Vec<&'a Endpoint>)> {
        let filter = self.filter.as_str();
        if service.id().contains(filter) {
            return Some((service, service.endpoints.iter().collect()));
        }
        let matches = |endpoint: &&Endpoint| {
            endpoint.address.contains(filter) || endpoint.pod.contains(filter)
        };
        let endpoints: Vec<_> = service.endpoints.iter().filter(matches).collect();
        (!endpoints.is_empty()).then_some((service, endpoints))
    }
}

fn cells(
    name: String,
    pod: &str,
    traffic: &Traffic,
    in_flight: u64,
    state: &str,
    why: &str,
) -> [String; 9] {
    [
        name,
        pod.to_owned(),
        known(traffic.requests_per_second, rate),
        known(traffic.success_rate, percent),
        known(traffic.p50_us, micros),
        known(traffic.p99_us, micros),
        in_flight.to_string(),
        state.to_owned(),
        why.to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::{
        answers,
        merge::{self, Span},
        testing::{golden, recorded},
    };

    fn shop() -> Vec<Service> {
        let (caller, other): (answers::Endpoints, answers::Endpoints) =
            (recorded("endpoints-frontend.json"), recorded("endpoints-cart.json"));
        merge::services([(&caller, None), (&other, None)], Span::TenSeconds)
    }

    fn view(sort: Sort) -> View {
        View { sort, filter: String::new(), typing: false }
    }

    fn names(view: &View) -> Vec<String> {
        let lines = view.lines(&shop(), Colours(false));
        let first = |line: &String| line.split_whitespace().next().map(str::to_owned);
        lines[1..].iter().filter_map(first).collect()
    }

    #[test]
    fn services_are_shown_with_their_endpoints() {
        golden("top.txt", &view(Sort::Rps).lines(&shop(), Colours(false)));
    }

    #[test]
    fn keys_choose_the_column_and_services_and_endpoints_follow() {
        let mut view = view(Sort::Rps);
        let busiest = names(&view);
        assert_eq!(busiest[..2], ["shop/orders:80", "10.0.0.1:8080"]);
        assert!(!view.ends(Key::Char('s')));
        assert_eq!(names(&view)[..2], ["shop/orders:80", "10.0.0.2:8080"]);
        assert!(!view.ends(Key::Char('p')));
        assert_eq!(names(&view)[0], "shop/stock:80");
        assert!(!view.ends(Key::Char('n')));
        assert_eq!(names(&view)[0], "shop/empty:80");
        assert!(view.ends(Key::Char('q')));
    }

    #[test]
    fn a_filter_is_typed_and_taken_back() {
        let mut view = view(Sort::Name);
        for key in "/stockq".chars().map(Key::Char) {
            assert!(!view.ends(key));
        }
        assert!(view.help().starts_with("filter: stockq_"));
        assert_eq!(names(&view), Vec::<String>::new());
        assert!(!view.ends(Key::Backspace));
        assert_eq!(names(&view)[0], "shop/stock:80");
        assert!(!view.ends(Key::Enter));
        assert!(view.help().contains("only \"stock\""));
        assert!(view.ends(Key::Char('q')), "typed no more");
        // A pod's name keeps its Service, and nothing else of it.
        view.filter = "orders-1".to_owned();
        assert_eq!(names(&view), ["shop/orders:80", "10.0.0.2:8080"]);
        assert!(!view.ends(Key::Backspace));
        assert_eq!(view.filter, "");
    }
}
