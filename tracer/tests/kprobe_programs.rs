//! The kprobe programs pass the verifier, also where the kernel refuses to attach them.

use std::path::Path;

use aya::programs::{Program, ProgramError};
use tracer::{
    attach::object::{self, Edition},
    kernel::{KernelTypes, arguments, btf::BTF_DIRECTORY, tracepoints},
};
use tracer_common::{
    filter::Filter,
    layout::{Bit, KernelLayout, Sizes},
    settings::Settings,
};

/// As for a trace with a filter, which takes the most code.
fn settings() -> Settings {
    let types = KernelTypes::open(Path::new(BTF_DIRECTORY)).expect("this kernel has BTF");
    Settings {
        layout: KernelLayout::resolve(|structure, path| types.offset_of(structure, path)),
        tc_at_ingress: types
            .bit_field("sk_buff", "tc_at_ingress")
            .map_or(Bit::ABSENT, |field| Bit::new(field.bit)),
        sizes: Sizes { tuplehash: types.size_of("nf_conntrack_tuple_hash").unwrap_or(0) },
        arguments: arguments::resolve(&types),
        freed: tracepoints::freed(&types),
        filter: Filter { active: 1, protocol: 6, ..Filter::default() },
        all_namespaces: 0,
        read_rules: 1,
        tentative: 1,
        verbose: 0,
        xdp: 0,
        verdicts: 1,
        cast_type: 0,
    }
}

fn load_all(edition: Edition) {
    let mut kernel_side =
        object::create(&object::for_kernel(edition, None), &settings()).expect("maps, as root");
    let mut loaded = 0;
    for (name, program) in kernel_side.programs_mut() {
        let (result, checked) = match program {
            Program::KProbe(program) => {
                (program.load(), program.info().ok().and_then(|info| info.verified_instruction_count()))
            }
            Program::RawTracePoint(program) => {
                (program.load(), program.info().ok().and_then(|info| info.verified_instruction_count()))
            }
            _ => continue,
        };
        if let Err(error) = result {
            if let ProgramError::LoadError { verifier_log, .. } = &error {
                let log = verifier_log.to_string();
                let lines: Vec<&str> = log.lines().collect();
                eprintln!("{}", lines[lines.len().saturating_sub(60)..].join("\n"));
            }
            panic!("{name}: {error:.200}");
        }
        eprintln!("{name}: {checked:?} instructions looked at");
        loaded += 1;
    }
    assert!(loaded >= 15, "only {loaded} programs");
}

#[test]
fn the_verifier_takes_every_program() {
    let types = KernelTypes::open(Path::new(BTF_DIRECTORY)).expect("this kernel has BTF");
    load_all(Edition::of(&types));
}

/// What older kernels are given loads on every kernel.
#[test]
fn the_verifier_takes_every_program_for_older_kernels() {
    load_all(Edition::Older);
}
