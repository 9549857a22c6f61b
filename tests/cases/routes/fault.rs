//! Failure on purpose, by annotation.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::shop::{Ask, Shop, WAYS, Way, route, to};

fn faulty(annotations: Value) -> Value {
    let mut object = route("r", json!([{"backendRefs": [to("orders")]}]));
    object["metadata"]["annotations"] = annotations;
    object
}

#[tokio::test]
async fn requests_are_refused_as_the_annotation_says_and_counted() {
    let shop = Shop::start(&[], &[faulty(json!({"fault.remora.io/abort-http": "418"}))]).await;
    for way in WAYS {
        let told = shop.ask(way, &Ask::get("/")).await;
        assert_eq!((told.status, told.header("remora-fault")), (418, vec!["abort"]), "{way:?}");
    }
    assert_eq!(shop.seen("orders"), 0);
    let aborted = [("result", "aborted")];
    assert_eq!(shop.client.metric("remora_outbound_route_faults_total", &aborted).await, 2);
}

#[tokio::test]
async fn only_its_share_of_requests_is_refused() {
    let annotations =
        json!({"fault.remora.io/abort-http": "500", "fault.remora.io/abort-percent": "25"});
    let shop = Shop::start(&[], &[faulty(annotations)]).await;
    let shares = shop.shares(Way::H1, &Ask::get("/"), 200).await;
    // Six standard deviations around 50.
    assert!((14..=86).contains(&shares.of("500")), "{shares:?}");
    assert_eq!(shares.of("500") + shares.of("orders"), shares.all(), "{shares:?}");
}

#[tokio::test]
async fn requests_are_held_up_for_so_long_and_then_answered() {
    let shop = Shop::start(&[], &[faulty(json!({"fault.remora.io/delay": "150ms"}))]).await;
    for way in WAYS {
        let begun = Instant::now();
        assert_eq!(shop.ask(way, &Ask::get("/")).await.service(), "orders");
        assert!(begun.elapsed() >= Duration::from_millis(150), "{way:?} {:?}", begun.elapsed());
    }
    let delayed = [("result", "delayed")];
    assert_eq!(shop.client.metric("remora_outbound_route_faults_total", &delayed).await, 2);
}

#[tokio::test]
async fn only_requests_with_the_fields_are_hit() {
    let annotations = json!({
        "fault.remora.io/abort-http": "500",
        "fault.remora.io/headers": "x-user=alice, x-test~=a.*",
    });
    let shop = Shop::start(&[], &[faulty(annotations)]).await;
    for way in WAYS {
        let alice = Ask::get("/").with("x-user", "alice");
        let both = shop.ask(way, &alice.clone().with("x-test", "abc")).await;
        assert_eq!((both.status, both.service()), (500, ""));
        assert_eq!(shop.ask(way, &alice.clone().with("x-test", "b")).await.status, 200);
        assert_eq!(shop.ask(way, &alice).await.status, 200);
        assert_eq!(shop.ask(way, &Ask::get("/")).await.status, 200);
    }
}

#[tokio::test]
async fn a_fault_that_is_mistyped_later_leaves_the_one_that_was_in_force() {
    let abort = |status: &str, rule: &str| {
        let mut object = faulty(json!({"fault.remora.io/abort-http": status}));
        object["spec"]["rules"][0]["name"] = json!(rule);
        object
    };
    let shop = Shop::start(&[], &[abort("418", "good")]).await;
    assert_eq!(shop.ask(Way::H1, &Ask::get("/")).await.status, 418);
    shop.put(&abort("many", "bad"));
    shop.until_rule("r/bad").await;
    assert_eq!(shop.ask(Way::H1, &Ask::get("/")).await.status, 418);
}
