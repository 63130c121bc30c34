//! The programs' instructions, and the description of their function as BTF (Documentation/bpf/btf.rst).

use super::{At, Says};

/// `struct bpf_insn`
pub(super) type Instruction = [u8; 8];

/// Number of the program's function in [`types`].
pub(super) const FUNCTION: u32 = 5;

/// `code dst, src, offset, immediate`
fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    let ([a, b], [c, d, e, f]) = (offset.to_ne_bytes(), immediate.to_ne_bytes());
    [code, from << 4 | to, a, b, c, d, e, f]
}

fn set(register: u8, value: i32) -> Instruction {
    instruction(0xb7, register, 0, 0, value)
}

fn exit() -> Instruction {
    instruction(0x95, 0, 0, 0, 0)
}

/// What a packet may pass by: `XDP_PASS`, `TCX_NEXT` (`TC_ACT_UNSPEC`).
fn pass(at: At) -> i32 {
    if at.is_xdp() { 2 } else { -1 }
}

pub(super) fn of(at: At, says: Says) -> Vec<Instruction> {
    match says {
        Says::Pass => vec![set(0, pass(at)), exit()],
        // XDP_DROP; TC_ACT_SHOT
        Says::Drop => vec![set(0, if at.is_xdp() { 1 } else { 2 }), exit()],
        Says::OfUdp { port, verdict } => of_udp(at, port, verdict),
    }
}

/// Ethernet, IPv4 without options, UDP.
fn of_udp(at: At, port: u16, verdict: i32) -> Vec<Instruction> {
    // `data` and `data_end` in struct xdp_md and struct __sk_buff.
    let (data, data_end) = if at.is_xdp() { (0, 4) } else { (76, 80) };
    vec![
        set(0, pass(at)),
        instruction(0x61, 2, 1, data, 0),
        instruction(0x61, 3, 1, data_end, 0),
        // if data + 42 > data_end: exit
        instruction(0xbf, 4, 2, 0, 0),
        instruction(0x07, 4, 0, 0, 42),
        instruction(0x2d, 4, 3, 5, 0),
        // Protocol and destination port.
        instruction(0x71, 5, 2, 23, 0),
        instruction(0x55, 5, 0, 3, 17),
        instruction(0x69, 5, 2, 36, 0),
        instruction(0x55, 5, 0, 1, i32::from(port.to_be())),
        set(0, verdict),
        exit(),
    ]
}

/// `int NAME(struct CONTEXT *ctx)`
pub(super) fn types(at: At, name: &str) -> Vec<u8> {
    let mut strings = vec![0u8];
    let mut string = |text: &str| {
        let at = strings.len() as u32;
        strings.extend(text.bytes().chain([0]));
        at
    };
    let int = string("int");
    let context = string(if at.is_xdp() { "xdp_md" } else { "__sk_buff" });
    let (parameter, function) = (string("ctx"), string(name));
    // Name, kind and number of members, size or type, and what the kind adds.
    let types: [&[u32]; 5] = [
        // 32 bits, signed
        &[int, 1 << 24, 4, 1 << 24 | 32],
        &[context, 4 << 24, 0],
        &[0, 2 << 24, 2],
        &[0, 13 << 24 | 1, 1, parameter, 3],
        &[function, 12 << 24, 4],
    ];
    let words: Vec<u32> = types.concat();
    let length = (words.len() * 4) as u32;
    let mut bytes = Vec::new();
    bytes.extend(0xeb9f_u16.to_ne_bytes());
    // Version, flags.
    bytes.extend([1, 0]);
    let header = [24, 0, length, length, strings.len() as u32];
    bytes.extend(header.iter().chain(&words).flat_map(|word| word.to_ne_bytes()));
    bytes.extend(strings);
    bytes
}
