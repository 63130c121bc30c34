//! What user space spends on a followed packet: `cargo bench -p tracer`.

mod records;

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use tracer::{
    correlate::Output,
    decode::{Event, decode},
};

/// Packets whose journeys are open at once while correlation is measured.
const PACKETS: u64 = 1_000;

fn decoding(c: &mut Criterion) {
    let records = records::packet(1);
    let mut group = c.benchmark_group("decode");
    group.throughput(Throughput::Elements(records.len() as u64));
    group.bench_function("the records of one packet", |b| {
        b.iter(|| {
            for record in &records {
                black_box(decode(black_box(record)).expect("a record"));
            }
        });
    });
    group.finish();
}

/// Every packet's first record, then every packet's second, and so on.
fn interleaved() -> Vec<Event> {
    let packets: Vec<Vec<Vec<u8>>> = (1..=PACKETS).map(records::packet).collect();
    let steps = 0..packets[0].len();
    steps
        .flat_map(|step| packets.iter().map(move |packet| decode(&packet[step]).expect("a record")))
        .collect()
}

fn correlating(c: &mut Criterion) {
    let events = interleaved();
    let mut group = c.benchmark_group("correlate");
    group.throughput(Throughput::Elements(PACKETS));
    group.bench_function("1,000 packets under way at once", |b| {
        let fresh = || (records::correlator(), Output::default(), events.clone());
        b.iter_batched(
            fresh,
            |(mut correlator, mut output, events)| {
                for event in events {
                    correlator.event(event, &mut output);
                }
                assert_eq!(output.closed.len() as u64, PACKETS);
                output
            },
            BatchSize::LargeInput,
        );
    });
    group.finish();
}

criterion_group!(benches, decoding, correlating);
criterion_main!(benches);
