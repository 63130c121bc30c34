use super::*;

fn prefix(text: &str) -> Prefix {
    let (address, length) = text.split_once('/').unwrap();
    Prefix::new(address.parse().unwrap(), length.parse().unwrap()).unwrap()
}

fn route(table: u32, destination: &str, link: u32, metric: u32) -> Route {
    Route {
        table,
        destination: prefix(destination),
        kind: RouteKind::Unicast,
        metric,
        nexthops: vec![Nexthop { link: Some(link), gateway: None }],
    }
}

fn rule(priority: u32, table: u32) -> PolicyRule {
    PolicyRule {
        ipv6: false,
        priority,
        source: None,
        destination: None,
        input: None,
        mark: None,
        table,
        refuses: None,
        other_conditions: false,
    }
}

#[test]
fn a_prefix_holds_its_own_network_only() {
    assert!(prefix("0.0.0.0/0").contains("203.0.113.1".parse().unwrap()));
    assert!(prefix("10.1.0.0/16").contains("10.1.255.255".parse().unwrap()));
    assert!(!prefix("10.1.0.0/16").contains("10.2.0.0".parse().unwrap()));
    assert!(!prefix("0.0.0.0/0").contains("::1".parse().unwrap()));
    assert!(prefix("fd00::/8").contains("fd01::2".parse().unwrap()));
    assert_eq!(prefix("10.1.2.3/16").network(), prefix("10.1.0.0/16"));
    assert_eq!(prefix("fd01::2/0").network(), prefix("::/0"));
    assert_eq!(Prefix::new("10.0.0.1".parse().unwrap(), 33), None);
}

#[test]
fn the_way_follows_policy_then_length_then_metric() {
    let network = Network {
        routes: vec![
            route(254, "0.0.0.0/0", 1, 100),
            route(254, "0.0.0.0/0", 2, 50),
            route(254, "10.2.0.0/16", 3, 0),
            route(100, "0.0.0.0/0", 4, 0),
        ],
        rules: vec![PolicyRule { mark: Some((1, 0xff)), ..rule(100, 100) }, rule(32766, 254)],
        ..Network::default()
    };
    let link = |question| network.route(question).unwrap().nexthops[0].link.unwrap();
    assert_eq!(link(Question::to("10.2.3.4".parse().unwrap())), 3);
    assert_eq!(link(Question::to("192.0.2.1".parse().unwrap())), 2);
    assert_eq!(link(Question { mark: 0x101, ..Question::to("10.2.3.4".parse().unwrap()) }), 4);
    assert_eq!(network.route(Question::to("2001:db8::1".parse().unwrap())), None);
}

#[test]
fn a_rule_that_is_not_understood_makes_the_answer_unknown() {
    let network = Network {
        routes: vec![route(254, "0.0.0.0/0", 1, 0)],
        rules: vec![PolicyRule { other_conditions: true, ..rule(1, 7) }, rule(2, 254)],
        ..Network::default()
    };
    assert_eq!(network.route(Question::to("192.0.2.1".parse().unwrap())), None);
}

#[test]
fn a_rule_that_refuses_is_found_where_no_route_comes_first() {
    let prohibit = PolicyRule {
        destination: Some(prefix("10.4.0.0/16")),
        refuses: Some(RouteKind::Prohibit),
        ..rule(10, 0)
    };
    let network = Network {
        routes: vec![route(255, "10.4.0.1/32", 1, 0), route(254, "0.0.0.0/0", 1, 0)],
        rules: vec![rule(0, 255), prohibit, rule(32766, 254)],
        ..Network::default()
    };
    let refusing = |to: &str| network.refusing_rule(Question::to(to.parse().unwrap()));
    assert_eq!(refusing("10.4.0.2").map(|rule| rule.priority), Some(10));
    assert_eq!(network.route(Question::to("10.4.0.2".parse().unwrap())), None);
    assert_eq!(refusing("10.4.0.1"), None);
    assert_eq!(refusing("10.5.0.1"), None);
}
