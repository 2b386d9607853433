//! Energy that the processor took, where Linux tells it (RAPL under /sys/class/powercap); elsewhere nothing is known.

use std::path::{Path, PathBuf};

/// Where Linux tells it.
const FOLDER: &str = "/sys/class/powercap";

/// Counters of all processors since some moment.
pub struct EnergyMeter {
    counters: Vec<Counter>,
}

struct Counter {
    path: PathBuf,
    /// Where it starts again from 0, in microjoules.
    range: u64,
    begun: u64,
}

impl EnergyMeter {
    /// Begins to count; none where no processor tells, or not to this user.
    pub fn start() -> Option<EnergyMeter> {
        EnergyMeter::start_in(Path::new(FOLDER))
    }

    fn start_in(folder: &Path) -> Option<EnergyMeter> {
        let mut counters = Vec::new();
        for entry in std::fs::read_dir(folder).ok()?.flatten() {
            // `intel-rapl:0` is a whole processor, `intel-rapl:0:0` a part of it.
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.matches(':').count() != 1 {
                continue;
            }
            let path = entry.path().join("energy_uj");
            let range = number(&entry.path().join("max_energy_range_uj"))?;
            counters.push(Counter { begun: number(&path)?, path, range });
        }
        (!counters.is_empty()).then_some(EnergyMeter { counters })
    }

    /// Joules since the start, of everything that the processors did meanwhile.
    pub fn joules(&self) -> Option<f64> {
        let mut microjoules = 0;
        for Counter { path, range, begun } in &self.counters {
            let now = number(path)?;
            microjoules += if now >= *begun { now - begun } else { range.saturating_sub(*begun) + now };
        }
        Some(microjoules as f64 / 1e6)
    }
}

fn number(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_processors_are_summed_across_the_end_of_a_counter() {
        let folder = tempfile::tempdir().unwrap();
        let write = |zone: &str, microjoules: u64| {
            let zone = folder.path().join(zone);
            std::fs::create_dir_all(&zone).unwrap();
            std::fs::write(zone.join("energy_uj"), format!("{microjoules}\n")).unwrap();
            std::fs::write(zone.join("max_energy_range_uj"), "10000000\n").unwrap();
        };
        assert!(EnergyMeter::start_in(folder.path()).is_none());
        write("intel-rapl:0", 1_000_000);
        write("intel-rapl:1", 9_000_000);
        write("intel-rapl:0:0", 5);
        let meter = EnergyMeter::start_in(folder.path()).unwrap();
        write("intel-rapl:0", 3_000_000);
        write("intel-rapl:1", 500_000);
        write("intel-rapl:0:0", 5_000_000);
        assert_eq!(meter.joules(), Some(3.5));
        std::fs::remove_dir_all(folder.path().join("intel-rapl:1")).unwrap();
        assert_eq!(meter.joules(), None);
    }
}
