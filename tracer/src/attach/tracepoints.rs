//! The tracepoints, and what takes over from some of them on devices.

use std::path::Path;

use anyhow::Result;

use super::{
    Kernel,
    devices::{self, Devices, News, Way},
    object,
};
use crate::{
    kernel::tracepoints,
    plan::{DeviceProbes, TRACEPOINTS, Tracepoint},
};

impl Kernel {
    /// Attaches the tracepoint programs: from here on packets are followed.
    ///
    /// # Errors
    /// When one is refused without which there is nothing to show.
    pub fn attach_tracepoints(&mut self) -> Result<()> {
        let takes = |probe: &&Tracepoint| tracepoints::takes(&self.types, probe.tracepoint, probe.takes);
        let programs: Vec<_> = TRACEPOINTS.iter().filter(takes).map(|probe| probe.program).collect();
        object::load_tracepoints(&mut self.ebpf, &programs);
        for probe in TRACEPOINTS {
            let attached = if programs.contains(&probe.program) {
                object::attach_tracepoint(&mut self.ebpf, probe.program, probe.tracepoint)
            } else {
                Err(anyhow::anyhow!("tracepoint {} hands over other things than expected", probe.tracepoint))
            };
            match attached {
                Ok(()) => self.attached.push(probe.tracepoint),
                Err(error) if probe.required => return Err(error),
                Err(_) => self
                    .missing
                    .push(format!("{}: this kernel has no tracepoint {}", probe.gives, probe.tracepoint)),
            }
        }
        Ok(())
    }

    /// Whether this kernel knows tcx links.
    #[must_use]
    pub fn has_tcx(&self) -> bool {
        let known = self.types.enum_values("bpf_attach_type").unwrap_or_default();
        known.iter().any(|(name, _)| name == "BPF_TCX_INGRESS")
    }

    /// Starts to place programs on the devices of the traced namespaces; tracepoints serve until they stand.
    ///
    /// # Errors
    /// When the kernel refuses the programs.
    pub fn start_devices(&mut self, probes: DeviceProbes) -> Result<()> {
        let way = match probes {
            DeviceProbes::Tracepoints => return Ok(()),
            DeviceProbes::Tcx => Way::Tcx,
            DeviceProbes::Clsact => Way::Clsact,
        };
        let namespaces =
            self.namespaces.values().map(|space| (space.inode(), space.path().to_owned())).collect();
        self.devices = Some(Devices::start(&mut self.ebpf, way, namespaces)?);
        Ok(())
    }

    /// Whether tcx links can be placed in the namespace at `path`; tried out on `lo`.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn try_tcx(&mut self, path: &Path) -> Result<()> {
        devices::try_out(&mut self.ebpf, path)
    }

    /// What has come of [`Self::start_devices`] since the last call. When the links stand, the tracepoints go.
    ///
    /// # Errors
    /// When a tracepoint program cannot be detached.
    pub fn device_news(&mut self) -> Result<Vec<News>> {
        let news = self.devices.as_ref().map(Devices::news).unwrap_or_default();
        if news.iter().any(|one| matches!(one, News::Placed)) {
            for probe in TRACEPOINTS.iter().filter(|probe| probe.instead_of_tcx) {
                object::detach_tracepoint(&mut self.ebpf, probe.program)?;
            }
        }
        Ok(news)
    }
}
