"""Heat and memory as the kernel tells them, in a tree of files like its own, and what is slowed down because of them."""

from pathlib import Path

import pytest

from agent.inference.pressure import DOWN_EVERY_S, MAX_STRIDE, UP_AFTER_S, Easing, Pressure, machine_strain, read_pressure

GIB = 2**30


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def zone(number: int, degrees: float, kind: str = "cpu-thermal", **trips: float) -> dict[str, str]:
    folder = f"sys/class/thermal/thermal_zone{number}"
    files = {f"{folder}/temp": str(int(degrees * 1000)), f"{folder}/type": kind}
    for index, (name, limit) in enumerate(trips.items()):
        files |= {f"{folder}/trip_point_{index}_type": name, f"{folder}/trip_point_{index}_temp": str(int(limit * 1000))}
    return files


def memory(
    *, available_mib: int = 4000, current: int = GIB // 2, high: str = "max", cache: int = 0, stalled: float = 0.0
) -> dict[str, str]:
    group = "sys/fs/cgroup/system.slice/mooring-agent.service"
    return {
        "proc/meminfo": f"MemTotal:       8388608 kB\nMemFree: 1 kB\nMemAvailable:   {available_mib * 1024} kB",
        "proc/self/cgroup": "0::/system.slice/mooring-agent.service",
        f"{group}/memory.current": str(current),
        f"{group}/memory.high": high,
        f"{group}/memory.max": "max",
        f"{group}/memory.stat": f"anon 1\ninactive_file {cache}\nactive_file 7",
        f"{group}/memory.pressure": f"some avg10=50.00 avg60=0 avg300=0 total=1\nfull avg10={stalled:.2f} avg60=0.00 avg300=0.00 total=1",
    }


class TestReading:
    def test_a_device_that_tells_nothing_is_under_no_pressure(self, tmp_path: Path):
        felt = read_pressure(tmp_path)
        assert felt == Pressure()
        assert not felt.is_hot
        assert not felt.is_short

    def test_this_machine_can_be_read(self):
        felt = read_pressure()
        assert felt.available_share is None or 0 < felt.available_share <= 1
        assert 1.0 <= machine_strain() <= 4.0

    def test_the_zone_nearest_to_its_own_limit_counts(self, tmp_path: Path):
        write(tmp_path, {**zone(0, 70, "gpu", passive=95), **zone(1, 60, "cpu", passive=65, critical=110)})
        felt = read_pressure(tmp_path)
        assert (felt.zone, felt.temperature_c, felt.limit_c) == ("cpu", 60.0, 63.0)

    def test_a_critical_point_alone_leaves_a_wide_margin(self, tmp_path: Path):
        assert read_pressure(write(tmp_path, zone(0, 96, critical=110))).is_hot

    @pytest.mark.parametrize("trips", [{}, {"passive": 0.0}, {"critical": 32_767.0}, {"active": 50.0}])
    def test_without_a_plausible_trip_point_the_usual_limit_counts(self, trips: dict[str, float], tmp_path: Path):
        assert read_pressure(write(tmp_path, zone(0, 79, **trips))).limit_c == 80.0

    def test_a_sensor_that_gives_nonsense_is_left_out(self, tmp_path: Path):
        write(tmp_path, {**zone(0, 50), "sys/class/thermal/thermal_zone1/temp": "unknown", "sys/class/thermal/thermal_zone1/type": "x"})
        assert read_pressure(tmp_path).temperature_c == 50.0

    def test_the_file_cache_is_not_the_agent_s_memory(self, tmp_path: Path):
        full = read_pressure(write(tmp_path, memory(current=GIB, high=str(GIB), cache=GIB // 2)))
        assert full.used_share == pytest.approx(0.5)
        assert not full.is_short

    @pytest.mark.parametrize(
        "told", [memory(current=GIB, high=str(GIB)), memory(available_mib=200), memory(stalled=25.0)], ids=["limit", "machine", "stalled"]
    )
    def test_each_kind_of_shortage_is_felt(self, told: dict[str, str], tmp_path: Path):
        felt = read_pressure(write(tmp_path, told))
        assert felt.is_short
        assert not felt.is_roomy

    def test_damaged_files_are_no_reading(self, tmp_path: Path):
        write(tmp_path, dict.fromkeys([*memory(), *zone(0, 1)], "\x00?? : full avg10= MemTotal:"))
        assert not read_pressure(tmp_path).is_short


HOT = Pressure(temperature_c=81.0, limit_c=80.0, zone="cpu")
WARM = Pressure(temperature_c=77.0, limit_c=80.0, zone="cpu")
COOL = Pressure(temperature_c=70.0, limit_c=80.0, zone="cpu")
SHORT = Pressure(available_share=0.02)


class TestEasing:
    def test_the_pace_is_halved_step_by_step_while_it_stays_hot(self):
        easing = Easing()
        assert easing.feel(HOT, 0)
        assert not easing.feel(HOT, DOWN_EVERY_S - 1)
        strides = [easing.stride]
        for step in range(1, 5):
            easing.feel(HOT, step * DOWN_EVERY_S)
            strides.append(easing.stride)
        assert strides == [2, 4, 8, 8, 8]
        assert strides[-1] == MAX_STRIDE

    def test_it_ends_only_after_a_calm_time_well_below_the_limit(self):
        easing = Easing()
        easing.feel(HOT, 0)
        assert not easing.feel(COOL, UP_AFTER_S - 1)
        assert not easing.feel(WARM, UP_AFTER_S), "warm is not cool: the calm begins anew"
        assert not easing.feel(COOL, 2 * UP_AFTER_S - 1)
        assert easing.feel(COOL, 2 * UP_AFTER_S)
        assert easing.stride == 1
        assert easing.findings() == []

    def test_it_goes_up_one_step_at_a_time(self):
        easing = Easing()
        for step in range(3):
            easing.feel(HOT, step * DOWN_EVERY_S)
        strides, now = [], 2 * DOWN_EVERY_S
        for _ in range(4):
            now += UP_AFTER_S
            easing.feel(COOL, now)
            strides.append(easing.stride)
        assert strides == [4, 2, 1, 1]

    def test_heat_and_memory_are_told_apart_with_what_was_seen(self):
        easing = Easing()
        easing.feel(HOT, 0)
        (found,) = easing.findings()
        assert found.code == "slowed_by_heat"
        assert "cpu has 81 °C, the limit here is 80 °C; 1 of 2 due frames" in found.text
        easing.feel(SHORT, DOWN_EVERY_S)
        (found,) = easing.findings()
        assert found.code == "slowed_by_memory"
        assert "2.0% of the memory is available" in found.text

    def test_no_pressure_changes_nothing(self):
        easing = Easing()
        assert not easing.feel(COOL, 0)
        assert (easing.stride, easing.findings()) == (1, [])
