use std::sync::atomic::{AtomicBool, AtomicU32};

use vm_memory::{Bytes, GuestAddress};

use super::super::spec::pci as spec;
use super::super::spec::{feature, status};
use super::*;
use crate::bus::{MsiMessage, MsiRoute, RouteId};
use crate::virtio::core::testing::*;

const BAR_GPA: u64 = 0xc000_0000;

/// Routes that say what became of them.
#[derive(Default)]
struct Recorder {
    count: AtomicU32,
    calls: Mutex<Vec<String>>,
    /// Whether a route can't be unmasked.
    refuses: AtomicBool,
}

impl MsiRoutes for Recorder {
    fn allocate(&self) -> io::Result<MsiRoute> {
        let id = RouteId(self.count.fetch_add(1, Ordering::SeqCst));
        Ok(MsiRoute { id, evt: EventFd::new(libc::EFD_NONBLOCK)? })
    }
    fn update(&self, route: RouteId, message: MsiMessage) -> io::Result<()> {
        self.calls.lock().unwrap().push(format!("{} -> {:#x} {:#x}", route.0, message.address, message.data));
        Ok(())
    }
    fn mask(&self, route: RouteId, masked: bool) -> io::Result<()> {
        if !masked && self.refuses.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.calls.lock().unwrap().push(format!("{} {}", route.0, if masked { "masked" } else { "live" }));
        Ok(())
    }
}

/// A driver of a function: what Linux's virtio-pci does, in its order.
struct Driver {
    mem: Arc<GuestMemory>,
    function: Arc<Function>,
    space: ConfigSpace,
    routes: Arc<Recorder>,
    doorbells: Arc<RecordedDoorbells>,
    queues: Vec<DriverQueue>,
}

impl Driver {
    fn new(device: impl VirtioDevice + 'static) -> Self {
        let (mem, routes, doorbells) =
            (memory(), Arc::new(Recorder::default()), Arc::new(RecordedDoorbells::default()));
        let function =
            Function::new(Box::new(device), BAR_GPA, mem.clone(), routes.clone(), doorbells.clone());
        let function = function.unwrap();
        Self { mem, space: function.config_space(), function, routes, doorbells, queues: Vec::new() }
    }

    /// The same, with memory decoding and MSI-X on.
    fn enabled() -> Self {
        let driver = Self::new(Echo::default());
        driver.set(spec::header::COMMAND, &6_u16.to_le_bytes());
        let msix = driver.capability(spec::msix::CAPABILITY, None);
        driver.set(msix + 2, &spec::msix::ENABLE.to_le_bytes());
        driver
    }

    fn started() -> Self {
        let mut driver = Self::enabled();
        driver.start(u64::MAX);
        driver
    }

    fn get<const N: usize>(&self, at: u16) -> [u8; N] {
        let mut data = [0xff; N];
        self.space.read(at.into(), &mut data);
        data
    }

    fn set(&self, at: u16, data: &[u8]) {
        self.space.write(at.into(), data);
    }

    fn word(&self, at: u16) -> u16 {
        u16::from_le_bytes(self.get(at))
    }

    fn long(&self, at: u16) -> u32 {
        u32::from_le_bytes(self.get(at))
    }

    /// Where a capability is: that of this id, and of virtio's that of this type.
    fn capability(&self, id: u8, kind: Option<u8>) -> u16 {
        let [mut at] = self.get(spec::header::CAPABILITIES);
        for _ in 0..48 {
            let [own, next, _, own_kind] = self.get(at.into());
            if own == id && kind.is_none_or(|kind| kind == own_kind) {
                return at.into();
            }
            at = next;
        }
        panic!("there is no capability {id:#x} {kind:?}");
    }

    fn read<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0xff; N];
        self.function.read(offset, &mut data);
        data
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.function.write(offset, data);
    }

    fn read16(&self, offset: u64) -> u16 {
        u16::from_le_bytes(self.read(offset))
    }

    fn status(&self) -> u32 {
        u32::from(self.read::<1>(reg::DEVICE_STATUS)[0])
    }

    fn set_status(&self, status: u32) {
        self.write(reg::DEVICE_STATUS, &[u8::try_from(status).unwrap()]);
    }

    fn start(&mut self, wanted: u64) {
        self.set_status(0);
        self.set_status(status::ACKNOWLEDGE | status::DRIVER);
        for word in 0..2_u32 {
            self.write(reg::DEVICE_FEATURE_SELECT, &word.to_le_bytes());
            let offered = u32::from_le_bytes(self.read(reg::DEVICE_FEATURE));
            let wanted = u32::try_from(((wanted | feature::VERSION_1) >> (32 * word)) & 0xffff_ffff).unwrap();
            self.write(reg::DRIVER_FEATURE_SELECT, &word.to_le_bytes());
            self.write(reg::DRIVER_FEATURE, &(offered & wanted).to_le_bytes());
        }
        self.set_status(self.status() | status::FEATURES_OK);
        assert_ne!(self.status() & status::FEATURES_OK, 0);
        self.write(reg::CONFIG_MSIX_VECTOR, &0_u16.to_le_bytes());
        self.queues.clear();
        for index in 0..self.read16(reg::NUM_QUEUES) {
            self.write(reg::QUEUE_SELECT, &index.to_le_bytes());
            let queue = DriverQueue::new(&self.mem, index.into(), SIZE);
            self.write(reg::QUEUE_SIZE, &SIZE.to_le_bytes());
            for (at, gpa) in [
                (reg::QUEUE_DESC, queue.layout.desc_table),
                (reg::QUEUE_DRIVER, queue.layout.avail_ring),
                (reg::QUEUE_DEVICE, queue.layout.used_ring),
            ] {
                self.write(at, &u32::try_from(gpa & 0xffff_ffff).unwrap().to_le_bytes());
                self.write(at + 4, &u32::try_from(gpa >> 32).unwrap().to_le_bytes());
            }
            self.write(reg::QUEUE_MSIX_VECTOR, &(index + 1).to_le_bytes());
            assert_eq!(self.read16(reg::QUEUE_MSIX_VECTOR), index + 1);
            self.write(reg::QUEUE_ENABLE, &1_u16.to_le_bytes());
            self.queues.push(queue);
        }
        self.set_status(self.status() | status::DRIVER_OK);
        assert_eq!(self.status() & status::NEEDS_RESET, 0);
    }

    /// One request of the echo device, by the queue's own doorbell.
    fn echo(&mut self, index: u16) {
        let (input, output) = (0x10_0000, 0x11_0000);
        let queue = &mut self.queues[usize::from(index)];
        let head = queue.add(&[Part::Read(input, 5), Part::Write(output, 4)]);
        let offset = u64::from(index) * u64::from(NOTIFY_STRIDE);
        self.write(NOTIFY.start + offset, &index.to_le_bytes());
        let mut used = None;
        wait_until("a used entry", || {
            used = self.queues[usize::from(index)].used();
            used.is_some()
        });
        assert_eq!(used, Some((head, 4)));
    }

    fn is_raised(&self, vector: usize) -> bool {
        lock(&self.function.msix).vectors()[vector].evt.read().is_ok()
    }

    fn wait_raised(&self, vector: usize) {
        wait_until("a vector to be raised", || self.is_raised(vector));
    }

    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.routes.calls.lock().unwrap())
    }
}

#[test]
fn the_configuration_space_identifies_the_device_and_says_where_everything_is() {
    let driver = Driver::new(Echo::default());
    assert_eq!((driver.word(0), driver.word(2)), (0x1af4, 0x1040 + 42));
    assert_eq!(driver.get::<1>(spec::header::REVISION), [1]);
    assert_eq!(driver.word(spec::header::STATUS) & 0x10, 0x10);
    assert_eq!(u64::from(driver.long(spec::header::BAR0)), BAR_GPA);
    for (kind, place) in [
        (spec::COMMON, COMMON),
        (spec::NOTIFY, NOTIFY),
        (spec::ISR, ISR),
        (spec::DEVICE_SPECIFIC, DEVICE_SPECIFIC),
    ] {
        let at = driver.capability(spec::CAPABILITY, Some(kind));
        assert_eq!(driver.get::<1>(at + spec::CAPABILITY_BAR), [0]);
        assert_eq!(u64::from(driver.long(at + spec::CAPABILITY_OFFSET)), place.start);
        assert_eq!(u64::from(driver.long(at + spec::CAPABILITY_LENGTH)), place.end - place.start);
    }
    let notify = driver.capability(spec::CAPABILITY, Some(spec::NOTIFY));
    assert_eq!(driver.long(notify + spec::CAPABILITY_DATA), NOTIFY_STRIDE);
    let msix = driver.capability(spec::msix::CAPABILITY, None);
    assert_eq!(driver.word(msix + 2), 2, "three vectors");
    assert_eq!(u64::from(driver.long(msix + 4)), MSIX_TABLE.start);
    assert_eq!(u64::from(driver.long(msix + 8)), MSIX_PENDING.start);
    // Behind everything there are zeros, and writing there does nothing.
    driver.set(0x800, &[0xff; 4]);
    assert_eq!(driver.get::<4>(0x800), [0; 4]);
    driver.set(0, &[0; 4]);
    assert_eq!(driver.word(0), 0x1af4);
}

#[test]
fn the_bar_tells_its_size_and_stays_where_it_is() {
    let driver = Driver::new(Echo::default());
    driver.set(spec::header::BAR0, &[0xff; 4]);
    assert_eq!(driver.long(spec::header::BAR0), 0xffff_8000);
    driver.set(spec::header::BAR0, &u32::try_from(BAR_GPA).unwrap().to_le_bytes());
    assert_eq!(u64::from(driver.long(spec::header::BAR0)), BAR_GPA);
    // The other five have no size.
    driver.set(spec::header::BAR0 + 4, &[0xff; 4]);
    assert_eq!(driver.long(spec::header::BAR0 + 4), 0);
}

#[test]
fn nothing_answers_before_memory_is_switched_on() {
    let driver = Driver::new(Echo::default());
    assert_eq!(driver.read::<2>(reg::NUM_QUEUES), [0xff; 2]);
    driver.set(spec::header::COMMAND, &2_u16.to_le_bytes());
    assert_eq!(driver.read16(reg::NUM_QUEUES), 2);
}

#[test]
fn requests_are_served_and_each_queue_raises_its_own_vector() {
    for wanted in [0, feature::INDIRECT_DESC, feature::EVENT_IDX, u64::MAX] {
        let mut driver = Driver::enabled();
        driver.start(wanted);
        for (index, other) in [(0, 1), (1, 0)] {
            driver.echo(index);
            driver.wait_raised(usize::from(index) + 1);
            assert!(!driver.is_raised(other + 1) && !driver.is_raised(0));
        }
    }
}

#[test]
fn a_queue_without_a_vector_raises_nothing() {
    let mut driver = Driver::started();
    driver.write(reg::QUEUE_SELECT, &0_u16.to_le_bytes());
    // A vector that doesn't exist is none.
    driver.write(reg::QUEUE_MSIX_VECTOR, &3_u16.to_le_bytes());
    assert_eq!(driver.read16(reg::QUEUE_MSIX_VECTOR), spec::NO_VECTOR);
    driver.echo(0);
    driver.echo(1);
    driver.wait_raised(2);
    assert!(!driver.is_raised(1));
}

#[test]
fn queues_that_do_not_exist_have_no_size_and_take_nothing() {
    let driver = Driver::enabled();
    driver.write(reg::QUEUE_SELECT, &2_u16.to_le_bytes());
    assert_eq!(driver.read16(reg::QUEUE_SIZE), 0);
    driver.write(reg::QUEUE_MSIX_VECTOR, &1_u16.to_le_bytes());
    assert_eq!(driver.read16(reg::QUEUE_MSIX_VECTOR), spec::NO_VECTOR);
    driver.write(reg::QUEUE_ENABLE, &1_u16.to_le_bytes());
    assert_eq!(driver.read16(reg::QUEUE_ENABLE), 0);
}

#[test]
fn doorbells_take_any_value_at_a_place_for_each_queue_and_go_with_the_reset() {
    let driver = Driver::started();
    let bells = |add| [0, 1].map(|index| (add, BAR_GPA + NOTIFY.start + 4 * index, None));
    assert_eq!(*driver.doorbells.0.lock().unwrap(), bells(true));
    driver.set_status(0);
    assert_eq!(driver.doorbells.0.lock().unwrap()[2..], bells(false));
}

#[test]
fn a_reset_forgets_everything_and_the_device_can_be_used_again() {
    let mut driver = Driver::started();
    driver.echo(0);
    driver.set_status(0);
    assert_eq!(driver.status(), 0);
    assert_eq!(driver.read16(reg::CONFIG_MSIX_VECTOR), spec::NO_VECTOR);
    for index in 0..2_u16 {
        driver.write(reg::QUEUE_SELECT, &index.to_le_bytes());
        assert_eq!(driver.read16(reg::QUEUE_MSIX_VECTOR), spec::NO_VECTOR);
        assert_eq!((driver.read16(reg::QUEUE_ENABLE), driver.read16(reg::QUEUE_SIZE)), (0, 64));
        assert_eq!(driver.read::<8>(reg::QUEUE_DESC), [0; 8]);
    }
    driver.start(u64::MAX);
    driver.echo(1);
}

#[test]
fn an_address_is_taken_in_halves_or_whole() {
    let driver = Driver::enabled();
    driver.write(reg::QUEUE_DRIVER, &0x1122_3344_5566_7788_u64.to_le_bytes());
    assert_eq!(u64::from_le_bytes(driver.read(reg::QUEUE_DRIVER)), 0x1122_3344_5566_7788);
    driver.write(reg::QUEUE_DRIVER + 4, &0xaabb_ccdd_u32.to_le_bytes());
    assert_eq!(u64::from_le_bytes(driver.read(reg::QUEUE_DRIVER)), 0xaabb_ccdd_5566_7788);
    // Across two of them: refused.
    driver.write(reg::QUEUE_DRIVER + 4, &[0; 8]);
    driver.write(reg::QUEUE_DRIVER + 1, &[0; 4]);
    assert_eq!(u64::from_le_bytes(driver.read(reg::QUEUE_DRIVER)), 0xaabb_ccdd_5566_7788);
    assert_eq!(driver.read::<8>(reg::QUEUE_DEVICE), [0; 8]);
}

#[test]
fn a_vector_is_live_only_when_msix_is_on_and_neither_mask_is_set() {
    let driver = Driver::enabled();
    let msix = driver.capability(spec::msix::CAPABILITY, None);
    let entry = MSIX_TABLE.start + spec::msix::ENTRY_LEN;
    driver.calls();
    driver.write(entry, &0xfee0_1000_u32.to_le_bytes());
    driver.write(entry + 8, &0x41_u32.to_le_bytes());
    assert_eq!(driver.calls(), ["1 -> 0xfee01000 0x0", "1 -> 0xfee01000 0x41"]);
    driver.write(entry + 12, &0_u32.to_le_bytes());
    assert_eq!(driver.calls(), ["1 live"]);
    driver.set(msix + 2, &(spec::msix::ENABLE | spec::msix::MASK_ALL).to_le_bytes());
    driver.set(msix + 2, &spec::msix::ENABLE.to_le_bytes());
    driver.set(msix + 2, &0_u16.to_le_bytes());
    assert_eq!(driver.calls(), ["1 masked", "1 live", "1 masked"]);
    driver.write(entry + 12, &1_u32.to_le_bytes());
    driver.set(msix + 2, &spec::msix::ENABLE.to_le_bytes());
    assert_eq!(driver.calls(), [""; 0]);
    // A word of eight bytes, as 64-bit guests may write it; and reading gives it back.
    driver.write(entry, &[0, 0x20, 0xe0, 0xfe, 0, 0, 0, 0]);
    assert_eq!(driver.read::<8>(entry), [0, 0x20, 0xe0, 0xfe, 0, 0, 0, 0]);
    assert_eq!(driver.calls(), ["1 -> 0xfee02000 0x41"]);
    // Outside the table, or not aligned: nothing.
    driver.write(MSIX_TABLE.start + 3 * spec::msix::ENTRY_LEN, &[0; 4]);
    driver.write(entry + 2, &[0; 4]);
    assert_eq!(driver.calls(), [""; 0]);
}

#[test]
fn a_vector_whose_message_was_refused_is_masked_until_it_gets_a_better_one() {
    let mut driver = Driver::started();
    let entry = MSIX_TABLE.start + 2 * spec::msix::ENTRY_LEN;
    driver.routes.refuses.store(true, Ordering::SeqCst);
    driver.write(entry + 12, &0_u32.to_le_bytes());
    driver.echo(1);
    wait_until("the pending bit", || driver.read::<1>(MSIX_PENDING.start) == [4]);
    driver.calls();
    driver.routes.refuses.store(false, Ordering::SeqCst);
    driver.write(entry, &0xfee0_1000_u32.to_le_bytes());
    assert_eq!(driver.calls(), ["2 -> 0xfee01000 0x0", "2 live"]);
}

#[test]
fn what_is_raised_while_masked_is_pending() {
    let mut driver = Driver::started();
    driver.echo(1);
    wait_until("the pending bit", || driver.read::<8>(MSIX_PENDING.start) == [4, 0, 0, 0, 0, 0, 0, 0]);
    driver.wait_raised(2);
    assert_eq!(driver.read::<8>(MSIX_PENDING.start), [0; 8]);
}

#[test]
fn the_access_capability_reaches_the_registers() {
    let driver = Driver::enabled();
    let at = driver.capability(spec::CAPABILITY, Some(spec::ACCESS));
    let aim = |offset: u64, len: u32| {
        driver.set(at + spec::CAPABILITY_OFFSET, &u32::try_from(offset).unwrap().to_le_bytes());
        driver.set(at + spec::CAPABILITY_LENGTH, &len.to_le_bytes());
    };
    aim(reg::NUM_QUEUES, 2);
    assert_eq!(driver.word(at + spec::CAPABILITY_DATA), 2);
    aim(reg::QUEUE_SELECT, 2);
    driver.set(at + spec::CAPABILITY_DATA, &1_u16.to_le_bytes());
    assert_eq!(driver.read16(reg::QUEUE_SELECT), 1);
    // A length or a BAR that makes no sense reaches nothing.
    aim(reg::QUEUE_SELECT, 3);
    driver.set(at + spec::CAPABILITY_DATA, &[0; 4]);
    aim(reg::QUEUE_SELECT, 2);
    driver.set(at + spec::CAPABILITY_BAR, &[1]);
    driver.set(at + spec::CAPABILITY_DATA, &[0; 2]);
    assert_eq!(driver.read16(reg::QUEUE_SELECT), 1);
}

#[test]
fn a_change_of_the_configuration_raises_its_vector() {
    let echo = Echo::default();
    let (config, change) = (echo.config.clone(), echo.config_change.clone());
    let mut driver = Driver::new(echo);
    driver.set(spec::header::COMMAND, &6_u16.to_le_bytes());
    driver.start(u64::MAX);
    let [before] = driver.read(reg::CONFIG_GENERATION);
    let change = change.lock().unwrap().clone().unwrap();
    change.apply(|| config.lock().unwrap()[..5].copy_from_slice(b"other"));
    driver.wait_raised(0);
    assert_eq!(driver.read::<8>(DEVICE_SPECIFIC.start), *b"othervar");
    assert_eq!(driver.read::<1>(reg::CONFIG_GENERATION), [before + 1]);
    driver.write(DEVICE_SPECIFIC.start + 4, b"mine");
    assert_eq!(driver.read::<4>(DEVICE_SPECIFIC.start + 4), *b"mine");
}

#[test]
fn a_broken_queue_needs_a_reset_and_the_other_goes_on() {
    let mut driver = Driver::started();
    driver.queues[0].set_avail_idx(1000);
    driver.write(NOTIFY.start, &[0; 2]);
    wait_until("DEVICE_NEEDS_RESET", || driver.status() & status::NEEDS_RESET != 0);
    driver.wait_raised(0);
    driver.echo(1);
}

#[test]
fn no_access_to_any_offset_of_any_width_does_harm() {
    let driver = Driver::started();
    for step in [1, 2, 4, 8] {
        for offset in (0..BAR_LEN + 16).step_by(7) {
            let mut data = vec![0xff; step];
            driver.function.read(offset, &mut data);
            if within(&COMMON, offset).is_none() {
                driver.function.write(offset, &data);
            }
        }
        for offset in 0..CONFIG_LEN + 8 {
            let mut data = vec![0xff; step];
            driver.space.read(offset, &mut data);
            driver.space.write(offset, &data);
        }
    }
    for offset in 0..COMMON.end {
        for value in [0, 1, 0x80, 0xff] {
            driver.write(offset, &[value; 4]);
            driver.write(offset, &[value; 2]);
            driver.write(offset, &[value; 1]);
        }
    }
}

#[test]
fn another_function_goes_on_with_the_vectors_that_the_driver_has_chosen() {
    let mut driver = Driver::started();
    driver.write(MSIX_TABLE.start + 16, &[0xfee0_1000_u32, 0, 0x41, 0].map(u32::to_le_bytes).concat());
    driver.write(MSIX_TABLE.start + 32, &[0xfee0_2000_u32, 0, 0x42, 1].map(u32::to_le_bytes).concat());
    driver.echo(0);
    driver.echo(1);
    let space: [u8; 256] = driver.get(0);
    let suspended = |driver: &Driver| {
        let state = serde_json::to_string(&driver.function.suspend()).unwrap();
        serde_json::from_str::<State>(&state).unwrap()
    };
    let state = suspended(&driver);

    let other = Driver::new(Echo::default());
    other.function.restore(&state).unwrap();
    assert_eq!(other.get::<256>(0), space);
    assert_eq!(suspended(&other), state);
    let calls = other.calls();
    assert_eq!(calls.iter().filter(|call| call.ends_with("live")).collect::<Vec<_>>(), ["1 live"]);
    assert!(calls.iter().any(|call| call == "1 -> 0xfee01000 0x41"), "{calls:?}");
    assert!(calls.iter().any(|call| call == "2 -> 0xfee02000 0x42"), "{calls:?}");
    // The driver's memory goes with the device.
    let mem = |driver: &Driver| driver.mem.clone();
    let mut bytes = vec![0; usize::try_from(MEM_END).unwrap()];
    mem(&driver).read_slice(&mut bytes, GuestAddress(0)).unwrap();
    mem(&other).write_slice(&bytes, GuestAddress(0)).unwrap();
    let mut driver = Driver { queues: std::mem::take(&mut driver.queues), ..other };
    for queue in &mut driver.queues {
        queue.mem = driver.mem.clone();
    }
    driver.function.resume();
    for vector in 0..3 {
        driver.wait_raised(vector);
    }
    for index in [1, 0] {
        driver.queues[usize::from(index)].set_used_event(1);
        driver.echo(index);
        driver.wait_raised(usize::from(index) + 1);
    }
}

#[test]
fn registers_that_could_not_have_come_about_are_refused() {
    let driver = Driver::started();
    let good = driver.function.suspend();
    for (why, field, value) in [
        ("another number of vectors", "queue_vectors", "[1]"),
        ("another length", "msix", "[[0, 0, 0, 1]]"),
        ("a configuration space", "config_space", "[1, 2, 3]"),
        ("invalid value", "queue_select", "70000"),
        ("unknown field", "anything", "1"),
    ] {
        let mut state = good.clone();
        state.registers[field] = serde_json::from_str(value).unwrap();
        let error = Driver::new(Echo::default()).function.restore(&state).unwrap_err();
        assert!(error.to_string().contains(why), "{why}: {error}");
    }
    // Whatever a driver could write is what it could have written.
    let mut state = good;
    state.registers["config_vector"] = 9.into();
    state.registers["config_space"] = vec![0xff_u8; 256].into();
    let driver = Driver::new(Echo::default());
    driver.function.restore(&state).unwrap();
    assert_eq!(driver.read16(reg::CONFIG_MSIX_VECTOR), NO_VECTOR);
    assert_eq!((driver.word(0), driver.word(2)), (0x1af4, 0x1040 + 42));
}
