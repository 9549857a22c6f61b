//! What `docs/routes.md` says of itself.

use std::{collections::BTreeSet, path::Path};

use serde_json::Value;

use super::shop::{Ask, Shop, Way};

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

#[tokio::test]
async fn the_example_does_what_is_said_of_it() {
    let text = read("../docs/routes.md");
    let example = text.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap();
    let example: Value = serde_saphyr::from_str(example).unwrap();
    let shop = Shop::start(&["orders-v1", "orders-v2"], &[example]).await;
    let tester = Ask::get("/").with("x-tester", "yes");
    assert_eq!(shop.shares(Way::H1, &tester, 10).await.of("orders-v2"), 10);
    let retried = shop.shares(Way::H1, &Ask::get("/").with("x-fail-first", "1"), 2).await;
    assert_eq!(retried.of("503"), 0, "{retried:?}");
    let shares = shop.shares(Way::H1, &Ask::get("/"), 40).await;
    assert!(shares.of("orders-v1") > shares.of("orders-v2"), "{shares:?}");
    assert_eq!(shares.of("orders-v1") + shares.of("orders-v2"), 40, "{shares:?}");
}

#[test]
fn every_test_that_the_tables_name_is_there() {
    let text = read("../docs/routes.md");
    let named: BTreeSet<&str> =
        text.split('`').filter(|word| word.contains("::") && !word.contains(' ')).collect();
    assert!(named.len() > 40, "{}", named.len());
    for name in named {
        let (file, test) = name.split_once("::").unwrap();
        let source = read(&format!("cases/routes/{file}.rs"));
        assert!(source.contains(&format!("fn {test}()")), "{name}");
    }
}
