use super::*;

fn packet() -> KnownPacket {
    let name = |text: &str| {
        let mut name = [0; 16];
        name[..text.len()].copy_from_slice(text.as_bytes());
        DeviceName::new(2, name)
    };
    KnownPacket {
        family: Family::Ipv4,
        protocol: Protocol::TCP,
        tuple: Tuple {
            source: [10, 1, 0, 2].into(),
            source_port: Some(40_000),
            destination: [10, 2, 0, 2].into(),
            destination_port: Some(80),
        },
        input: name("eth0"),
        output: None,
        state: Some(CtState::New),
        direction: Some(Direction::Original),
        status: Some(1 << 5),
    }
}

/// What a rule answers, for as long as a test runs.
fn of(text: &str) -> Answer<'static> {
    let elements = |name: &str| match name {
        "ports" => Some("22 : jump ssh, 80-90 : goto web"),
        "admins" => Some("10.1.0.0/30, 10.9.0.9"),
        "noted" => Some("10.9.0.9 comment \"not 10.1.0.2, 10.1.0.2\""),
        "empty" => Some(""),
        "services" => Some("10.9.0.9 . udp . 53 : goto dns, 10.2.0.2 . tcp . 80 : goto web"),
        "pairs" => Some("10.1.0.0/24 . 79-81, 10.3.0.0/24 . 80"),
        "strange" => Some("10.1.0.2 . http, 10.3.0.2 . 80"),
        _ => None,
    };
    let matcher = Matcher::read(text, elements, &mut Sets::default());
    Box::leak(Box::new(matcher)).answer(&packet())
}

#[test]
fn what_the_packet_s_own_fields_rule_out_or_settle() {
    for text in [
        "udp dport 80 accept",
        "tcp dport 81 accept",
        "tcp dport { 22, 443, 8000-8100 } counter accept",
        "tcp dport != 80 drop",
        "ip saddr 10.1.0.0/24 ip daddr != 10.2.0.0/16 drop",
        "ip6 saddr fd00::1 accept",
        "meta nfproto ipv6 drop",
        "meta l4proto { udp, icmp } accept",
        "iifname \"eth1\" accept",
        "iif \"lo\" accept",
        "oifname \"eth1\" masquerade",
        "oifname vmap { \"eth0\" : jump lan, \"eth1\" : jump wan }",
        "ct state established,related accept",
        "ct status snat accept",
        "ct direction reply accept",
        "icmp type echo-request accept",
        "tcp dport 80 dnat ip6 to fd00::2",
        "reject with icmpv6 port-unreachable",
        "ip daddr @admins accept",
        "ip saddr @empty accept",
        "ip daddr . tcp dport @pairs accept",
        "ip saddr . tcp dport != @pairs accept",
        "iifname . ip saddr { \"eth1\" . 10.1.0.2, \"eth0\" . 10.1.0.3 } accept",
        "ip daddr . tcp dport @strange accept",
        "ct mark 0x00000001 tcp dport 81 accept comment \"never asked: ct mark is not known\"",
    ] {
        let wanted = if text.starts_with("ct mark") { Answer::Open } else { Answer::Fails };
        assert_eq!(of(text), wanted, "{text}");
    }
    for text in [
        "tcp dport 80 accept",
        "accept",
        "counter",
        "iifname \"eth*\" tcp dport { 22, 80 } counter log prefix \"x \" drop",
        "ip saddr 10.1.0.1-10.1.0.9 ip daddr 10.2.0.2 jump web",
        "ct state new,untracked tcp sport 1024-65535 accept",
        "ct state != invalid reject with tcp reset",
        "ct status dnat,snat accept",
        "ct direction original log prefix \"a b\" level debug accept",
        "meta l4proto { tcp, udp } flow add @ft",
        "ip saddr @admins ip daddr != @admins accept",
        "ip saddr . tcp dport @pairs accept",
    ] {
        assert_eq!(of(text), Answer::Matches, "{text}");
    }
}

#[test]
fn sets_may_be_large_and_their_ranges_may_meet() {
    let many: Vec<_> = (0..20_000_u32).map(|n| format!("10.{}.{}.7", n / 250 % 250, n % 250)).collect();
    let elements = format!("{}, 10.1.0.0/30, 10.1.0.2-10.1.0.9, 10.1.0.0/31", many.join(", "));
    let of = |text: &str| {
        let mut sets = Sets::default();
        let matcher = Matcher::read(text, |_| Some(&*elements), &mut sets);
        format!("{:?}", matcher.answer(&packet()))
    };
    assert_eq!(of("ip saddr @many drop"), "Matches");
    assert_eq!(of("ip daddr @many drop"), "Fails");
}

#[test]
fn a_verdict_map_is_looked_up() {
    let chooses = |verdict, certain| Answer::Chooses { verdict, certain };
    assert_eq!(of("ct state vmap { invalid : drop, established : accept, related : accept }"), Answer::Fails);
    assert_eq!(of("ct state vmap { invalid : drop, new : jump fresh }"), chooses("jump fresh", true));
    assert_eq!(of("counter tcp dport vmap @ports"), chooses("goto web", true));
    assert_eq!(of("ip saddr @friends tcp dport vmap { 80 : accept }"), chooses("accept", false));
    assert_eq!(of("tcp dport vmap { 22 : accept, * : drop }"), chooses("drop", true));
    assert_eq!(of("iifname vmap { \"eth0\" : jump lan, \"eth1\" : jump wan }"), chooses("jump lan", true));
    assert_eq!(of("tcp dport vmap @gone"), Answer::Open);
    assert_eq!(of("ip daddr . meta l4proto . th dport vmap @services"), chooses("goto web", true));
    assert_eq!(of("ip saddr . meta l4proto . th dport vmap @services"), Answer::Fails);
}

#[test]
fn what_is_not_understood_stays_open() {
    for text in [
        "meta mark 0x1 accept",
        "ip saddr @bad drop",
        "ip saddr @noted drop",
        "ip saddr . ct mark { 10.1.0.2 . 0x1 } drop",
        "ip saddr . tcp dport @strange drop",
        "ip saddr . tcp dport { 10.1.0.2 . 80 . 1 } drop",
        "tcp flags syn drop",
        "tcp dport 80 limit rate 1/second accept",
        "tcp dport 80 flow add @ft accept",
        "tcp dport 80 add @seen { ip saddr . ip6 daddr }",
        "oifname != \"eth1\" masquerade",
        "oifname vmap { \"eth0\" : jump lan, * : drop }",
        "tcp dport http accept",
        "ip saddr & 255.255.0.0 == 10.1.0.0 drop",
        "tcp dport 80 dnat ip to ip saddr map { 10.9.0.1 : 10.2.0.2 }",
        "meta mark set 0x1",
        "ip daddr set 10.3.0.3",
        "ct state != established,related drop",
        "ct status != snat drop",
        "ct status { dnat } drop",
        "ct status vmap { dnat : drop }",
        "ct status . ip saddr { dnat . 10.1.0.2 } drop",
        "ct status assured accept",
    ] {
        assert_eq!(of(text), Answer::Open, "{text}");
    }
}
