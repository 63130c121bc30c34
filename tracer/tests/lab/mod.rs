//! A network namespace of one test, which vanishes with its last handle, and the readers of the kernel.
#![allow(clippy::unwrap_used, reason = "tests panic")]

use std::{
    env,
    fs::File,
    io::Write,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::LazyLock,
    thread,
    time::Duration,
};

use aya::EbpfLoader;
use nix::sched::{CloneFlags, unshare};
use tracer::kernel::{KernelTypes, Memory, Peek, Symbols, btf, net, percpu, symbols};

struct Facts {
    types: KernelTypes,
    symbols: Symbols,
    peek: Peek,
    cpus: percpu::CpuOffsets,
}

static FACTS: LazyLock<Facts> = LazyLock::new(|| {
    let object = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/pathtrace-ebpf"));
    let types = KernelTypes::open(Path::new(btf::BTF_DIRECTORY)).unwrap();
    let symbols = Symbols::read(Path::new(symbols::KALLSYMS)).unwrap();
    let mut ebpf = EbpfLoader::new().load(object).unwrap();
    let peek = Peek::load(&mut ebpf, &types).unwrap();
    let cpus = percpu::CpuOffsets::measure(&peek, &types, Path::new(percpu::CPU_DIRECTORY)).unwrap();
    Facts { types, symbols, peek, cpus }
});

/// A deadline, as many times longer as `PATHTRACE_TEST_SLOWNESS` (a whole number) says: for emulated machines.
#[allow(dead_code, reason = "not every test waits")]
pub(crate) fn scaled(deadline: Duration) -> Duration {
    let slowness = env::var("PATHTRACE_TEST_SLOWNESS").ok().and_then(|text| text.parse().ok());
    deadline * slowness.unwrap_or(1)
}

pub(crate) struct Lab {
    namespace: File,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let namespace = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("root may make network namespaces");
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        let lab = Self { namespace: namespace.join().unwrap() };
        lab.run("ip link set lo up");
        lab
    }

    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.namespace.as_raw_fd()).into()
    }

    pub(crate) fn inside<T: Send>(&self, job: impl FnOnce() -> T + Send) -> T {
        net::in_netns(&self.path(), job).unwrap()
    }

    /// Runs a command line in the namespace and returns what it printed; it must succeed.
    pub(crate) fn run(&self, line: &str) -> String {
        let words: Vec<_> = line.split_whitespace().collect();
        self.feed(&words, "")
    }

    pub(crate) fn nft(&self, script: &str) {
        self.feed(&["nft", "-f", "-"], script);
    }

    pub(crate) fn feed(&self, words: &[&str], input: &str) -> String {
        let output = self.inside(|| {
            let mut child = Command::new(words[0])
                .args(&words[1..])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap_or_else(|error| panic!("{}: {error}", words[0]));
            child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
            child.wait_with_output().unwrap()
        });
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?}: {errors}{input}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The kernel's `struct net`.
    pub(crate) fn net(&self) -> u64 {
        self.inside(|| net::current_net(&FACTS.peek).unwrap())
    }

    pub(crate) fn memory(&self) -> &'static dyn Memory {
        &FACTS.peek
    }

    pub(crate) fn types(&self) -> &'static KernelTypes {
        &FACTS.types
    }

    pub(crate) fn symbols(&self) -> &'static Symbols {
        &FACTS.symbols
    }

    pub(crate) fn cpus(&self) -> &'static percpu::CpuOffsets {
        &FACTS.cpus
    }
}
