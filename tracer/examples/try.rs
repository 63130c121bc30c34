use tracer::attach::{netfilter::*, object};
use tracer_common::{settings::*, layout::*, filter::Filter};
fn main() -> anyhow::Result<()> {
    let btf = btf_rs::Btf::from_file("/sys/kernel/btf/vmlinux")?;
    let t = std::time::Instant::now();
    let layout = KernelLayout::resolve(|s, p| off(&btf, s, p));
    println!("layout {:?} absent {:?}", t.elapsed(), layout.absent().collect::<Vec<_>>());
    let mut s = Settings::ZERO; s.layout = layout; s.sizes.tuplehash = 56; s.read_rules = 1; s.tentative = 1; s.all_namespaces = 1;
    s.filter = Filter { protocol: 6, active: 1, ..Filter::default() };
    let mut e = object::create(&s)?;
    println!("maps {:?}", t.elapsed());
    if let Ok(p) = std::env::var("DBG") { DBG.set((p, 17)).unwrap(); Programs::new(object::OBJECT, e.maps(), true)?.dbg(std::env::var("TY").unwrap_or("17".into()).parse()?); return Ok(()) }
    for (p, tp) in [("device_in","netif_receive_skb"),("device_out","net_dev_start_xmit"),("packet_drop","kfree_skb"),("packet_consume","consume_skb"),("route_lookup","fib_table_lookup"),("route_lookup6","fib6_table_lookup"),("socket_data","sk_data_ready"),("socket_state","inet_sock_set_state"),("socket_segment","tcp_probe"),("reset_sent","tcp_send_reset"),("icmp_sent","icmp_send")] {
        match object::attach_tracepoint(&mut e, p, tp) { Ok(()) => println!("{p} ok {:?}", t.elapsed()), Err(er) => println!("{p}: {er:#}") }
    }
    let mut n = Programs::new(object::OBJECT, e.maps(), true)?;
    println!("nf parsed {:?}", t.elapsed());
    let mut links = vec![];
    for (hook, prio, role) in [(0,-301,0),(0,-101,2),(0,0,0),(1,-1,0),(1,1,0),(2,-1,0),(2,1,0),(3,-301,1),(3,-101,2),(3,1,0),(4,99,0),(4,101,0)] {
        match n.attach(Place{pf:2,hook,priority:prio,role}) { Ok(l) => links.push(l), Err(er) => { println!("{er:?}"); break } }
    }
    println!("links {} {:?}", links.len(), t.elapsed());
    let mut ring = aya::maps::RingBuf::try_from(e.map_mut("EVENTS").unwrap())?;
    let t = std::time::Instant::now();
    while t.elapsed().as_secs() < 5 { while let Some(i) = ring.next() {
        let g = |o: usize| u64::from_ne_bytes(i[o..o+8].try_into().unwrap());
        let k = u32::from_ne_bytes(i[0..4].try_into().unwrap());
        println!("kind {k} j {:x} skb {:x} len {}", g(16), g(24), i.len());
        if k < 6 { let f = |o: usize| i32::from_ne_bytes(i[o..o+4].try_into().unwrap()); println!("   netns {} prio {} reason {} in {} out {} {} -> {} ports {:?} hook {}", f(56), f(64), f(68), String::from_utf8_lossy(&i[80..96]), String::from_utf8_lossy(&i[96..112]), std::net::Ipv4Addr::from(<[u8;4]>::try_from(&i[124..128]).unwrap()), std::net::Ipv4Addr::from(<[u8;4]>::try_from(&i[140..144]).unwrap()), (u16::from_ne_bytes([i[144],i[145]]), u16::from_ne_bytes([i[146],i[147]])), i[208+0]); }
    } std::thread::sleep(std::time::Duration::from_millis(50)); }
    Ok(())
}
fn off(b: &btf_rs::Btf, s: &str, p: &str) -> Option<u32> {
    use btf_rs::*;
    fn find(b: &Btf, t: &Type, n: &str) -> Option<(u32, Type)> {
        let st = match t { Type::Struct(s) | Type::Union(s) => s, _ => return None };
        for m in &st.members { let name = b.resolve_name(m).unwrap_or_default(); let mut ty = b.resolve_chained_type(m).ok()?;
            while matches!(ty, Type::Typedef(_)|Type::Const(_)|Type::Volatile(_)|Type::TypeTag(_)) { ty = b.resolve_chained_type(ty.as_btf_type().unwrap()).ok()?; }
            if name == n { return Some((m.bit_offset()/8, ty)) }
            if name.is_empty() { if let Some((o, t)) = find(b, &ty, n) { return Some((m.bit_offset()/8+o, t)) } } }
        None
    }
    let mut t = b.resolve_types_by_name(s).ok()?.into_iter().find(|t| matches!(t, Type::Struct(_)))?; let mut o = 0;
    for part in p.split('.') { let (x, y) = find(b, &t, part)?; o += x; t = y; } Some(o)
}
