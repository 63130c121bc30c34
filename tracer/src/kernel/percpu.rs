//! Where each CPU keeps its copy of per-CPU data.

use std::{collections::BTreeMap, fs, path::Path};

use super::{KernelTypes, Memory, Peek, ReadError};

/// Where the kernel lists its CPUs.
pub const CPU_DIRECTORY: &str = "/sys/devices/system/cpu";

/// For each CPU what is added to a per-CPU address to get the address of its copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuOffsets {
    online: BTreeMap<u32, u64>,
    possible: u32,
}

impl CpuOffsets {
    /// Measures them, on each CPU that is online, from a per-CPU map of ours.
    ///
    /// # Errors
    /// [`ReadError`] when the CPUs cannot be listed or the map cannot be read.
    pub fn measure(peek: &Peek, types: &KernelTypes, cpu_directory: &Path) -> Result<Self, ReadError> {
        // struct bpf_array starts with its struct bpf_map.
        let pptrs = types.require("bpf_array", "pptrs")?;
        let mut online = BTreeMap::new();
        for cpu in read_list(&cpu_directory.join("online"))? {
            let context = peek.context(Some(cpu))?;
            let address = context.per_cpu_map.wrapping_add(u64::from(pptrs));
            let shared = peek.read_u64(address).map_err(|source| ReadError::Unreadable {
                what: "bpf_array.pptrs",
                address,
                source,
            })?;
            online.insert(cpu, context.per_cpu_value.wrapping_sub(shared));
        }
        let possible =
            read_list(&cpu_directory.join("possible"))?.into_iter().max().map_or(1, |last| last + 1);
        Ok(Self { online, possible })
    }

    /// The kernel's `nr_cpu_ids`: one more than the highest CPU that may ever come online.
    #[must_use]
    pub fn possible(&self) -> u32 {
        self.possible
    }

    /// `None` for a CPU that was not online.
    #[must_use]
    pub fn get(&self, cpu: u32) -> Option<u64> {
        self.online.get(&cpu).copied()
    }

    /// CPUs that were online, with their offsets.
    pub fn iter(&self) -> impl Iterator<Item = (u32, u64)> {
        self.online.iter().map(|(cpu, offset)| (*cpu, *offset))
    }

    /// The sum of a per-CPU number over the CPUs that were online.
    ///
    /// # Errors
    /// [`ReadError::Unreadable`].
    pub fn sum(&self, memory: &dyn Memory, per_cpu_address: u64) -> Result<u64, ReadError> {
        self.online.values().try_fold(0u64, |sum, offset| {
            let address = per_cpu_address.wrapping_add(*offset);
            let value = memory.read_u64(address).map_err(|source| ReadError::Unreadable {
                what: "per-CPU counter",
                address,
                source,
            })?;
            Ok(sum.wrapping_add(value))
        })
    }
}

fn read_list(path: &Path) -> Result<Vec<u32>, ReadError> {
    let system = |source| ReadError::System { what: path.display().to_string(), source };
    let text = fs::read_to_string(path).map_err(system)?;
    parse_list(&text)
        .ok_or_else(|| system(std::io::Error::other(format!("not a list of CPUs: {:?}", text.trim()))))
}

/// Takes `0-3,8,10-11`.
fn parse_list(text: &str) -> Option<Vec<u32>> {
    let mut cpus = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.parse::<u32>().ok()?, last.parse::<u32>().ok()?);
        // CONFIG_NR_CPUS is at most 8192.
        if first > last || last >= 1 << 16 {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

#[cfg(test)]
mod tests {
    use super::{CpuOffsets, parse_list};
    use crate::kernel::memory::image::Image;

    #[test]
    fn lists_of_cpus() {
        assert_eq!(parse_list("0-1\n"), Some(vec![0, 1]));
        assert_eq!(parse_list("0"), Some(vec![0]));
        assert_eq!(parse_list("0-2,8,10-11"), Some(vec![0, 1, 2, 8, 10, 11]));
        assert_eq!(parse_list(""), None);
        assert_eq!(parse_list("3-1"), None);
        assert_eq!(parse_list("0-4294967295"), None);
    }

    #[test]
    fn a_sum_takes_every_cpu_and_wraps_addresses_as_the_kernel_does() {
        let mut image = Image::default();
        image.map(0x1000, 8).put_u64(0x1000, 3).map(0x2000, 8).put_u64(0x2000, 4);
        let offsets = CpuOffsets {
            online: [(0, 0x1000u64.wrapping_sub(0x60_0000)), (2, 0x2000u64.wrapping_sub(0x60_0000))].into(),
            possible: 4,
        };
        assert_eq!(offsets.sum(&image, 0x60_0000).unwrap(), 7);
        assert_eq!(offsets.get(1), None);
        assert!(offsets.sum(&image, 0x60_0008).is_err());
    }
}
