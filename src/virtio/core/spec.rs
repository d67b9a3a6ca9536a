//! The numbers of virtio 1.2, each with its section. Most come from the kernel's headers by way of
//! `virtio-bindings`; here they get short names and, for features, their masks.

/// Device status bits (§2.1).
pub mod status {
    pub use virtio_bindings::virtio_config::{
        VIRTIO_CONFIG_S_ACKNOWLEDGE as ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER as DRIVER,
        VIRTIO_CONFIG_S_DRIVER_OK as DRIVER_OK, VIRTIO_CONFIG_S_FAILED as FAILED,
        VIRTIO_CONFIG_S_FEATURES_OK as FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET as NEEDS_RESET,
    };
}

/// Device types (§5).
pub mod id {
    pub use virtio_bindings::virtio_ids::{
        VIRTIO_ID_BALLOON as BALLOON, VIRTIO_ID_BLOCK as BLOCK, VIRTIO_ID_CONSOLE as CONSOLE,
        VIRTIO_ID_NET as NET, VIRTIO_ID_RNG as RNG, VIRTIO_ID_VSOCK as VSOCK,
    };
}

/// Feature bits of the ring and the transport (§6), as masks.
pub mod feature {
    use virtio_bindings::{virtio_config, virtio_ring};

    /// The device obeys this specification and not a draft of it.
    pub const VERSION_1: u64 = 1 << virtio_config::VIRTIO_F_VERSION_1;
    /// A descriptor may point to a table of descriptors (§2.7.5.3).
    pub const INDIRECT_DESC: u64 = 1 << virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
    /// Either side says after which index it wants a notification (§2.7.7, §2.7.10).
    pub const EVENT_IDX: u64 = 1 << virtio_ring::VIRTIO_RING_F_EVENT_IDX;
    /// What [`Queue`](super::super::queue::Queue) does by itself, so that every device offers it.
    pub const RING: u64 = INDIRECT_DESC | EVENT_IDX;
}

/// The split virtqueue (§2.7).
pub mod ring {
    /// Bytes of a descriptor (§2.7.5).
    pub const DESC_SIZE: u32 = 16;
    /// Largest number of descriptors (§2.7).
    pub const MAX_SIZE: u16 = 32768;
    /// In the avail ring's flags: the driver wants no interrupt (§2.7.6).
    pub const AVAIL_F_NO_INTERRUPT: u16 = 1;
}

/// Registers of the MMIO transport, as offsets from its base (§4.2.2, table 4.1).
pub mod mmio {
    pub use virtio_bindings::virtio_mmio::{
        VIRTIO_MMIO_CONFIG as CONFIG, VIRTIO_MMIO_CONFIG_GENERATION as CONFIG_GENERATION,
        VIRTIO_MMIO_DEVICE_FEATURES as DEVICE_FEATURES,
        VIRTIO_MMIO_DEVICE_FEATURES_SEL as DEVICE_FEATURES_SEL, VIRTIO_MMIO_DEVICE_ID as DEVICE_ID,
        VIRTIO_MMIO_DRIVER_FEATURES as DRIVER_FEATURES,
        VIRTIO_MMIO_DRIVER_FEATURES_SEL as DRIVER_FEATURES_SEL, VIRTIO_MMIO_INT_CONFIG as INT_CONFIG,
        VIRTIO_MMIO_INT_VRING as INT_VRING, VIRTIO_MMIO_INTERRUPT_ACK as INTERRUPT_ACK,
        VIRTIO_MMIO_INTERRUPT_STATUS as INTERRUPT_STATUS, VIRTIO_MMIO_MAGIC_VALUE as MAGIC_VALUE,
        VIRTIO_MMIO_QUEUE_AVAIL_HIGH as QUEUE_DRIVER_HIGH, VIRTIO_MMIO_QUEUE_AVAIL_LOW as QUEUE_DRIVER_LOW,
        VIRTIO_MMIO_QUEUE_DESC_HIGH as QUEUE_DESC_HIGH, VIRTIO_MMIO_QUEUE_DESC_LOW as QUEUE_DESC_LOW,
        VIRTIO_MMIO_QUEUE_NOTIFY as QUEUE_NOTIFY, VIRTIO_MMIO_QUEUE_NUM as QUEUE_NUM,
        VIRTIO_MMIO_QUEUE_NUM_MAX as QUEUE_NUM_MAX, VIRTIO_MMIO_QUEUE_READY as QUEUE_READY,
        VIRTIO_MMIO_QUEUE_SEL as QUEUE_SEL, VIRTIO_MMIO_QUEUE_USED_HIGH as QUEUE_DEVICE_HIGH,
        VIRTIO_MMIO_QUEUE_USED_LOW as QUEUE_DEVICE_LOW, VIRTIO_MMIO_SHM_BASE_HIGH as SHM_BASE_HIGH,
        VIRTIO_MMIO_SHM_BASE_LOW as SHM_BASE_LOW, VIRTIO_MMIO_SHM_LEN_HIGH as SHM_LEN_HIGH,
        VIRTIO_MMIO_SHM_LEN_LOW as SHM_LEN_LOW, VIRTIO_MMIO_SHM_SEL as SHM_SEL, VIRTIO_MMIO_STATUS as STATUS,
        VIRTIO_MMIO_VENDOR_ID as VENDOR_ID, VIRTIO_MMIO_VERSION as VERSION,
    };

    /// What MAGIC_VALUE reads: "virt", little-endian.
    pub const MAGIC: u32 = 0x7472_6976;
    /// What VERSION reads: 2 is the transport of virtio 1.0 and later; 1 was the legacy one.
    pub const VERSION_2: u32 = 2;
    /// What VENDOR_ID reads: "both", little-endian. Drivers don't look at it.
    pub const VENDOR: u32 = 0x6874_6f62;
}

/// The PCI transport (§4.1), and what of PCI itself it is made of (PCI Local Bus 3.0 §6.1, §6.7,
/// §6.8.2).
pub mod pci {
    /// Red Hat's, for virtio (§4.1.2).
    pub const VENDOR: u16 = 0x1af4;
    /// The device id is this and the device type (§4.1.2).
    pub const DEVICE: u16 = 0x1040;

    /// Registers of the configuration space, as offsets in bytes (PCI 3.0 §6.1).
    pub mod header {
        pub const COMMAND: u16 = 0x04;
        pub const STATUS: u16 = 0x06;
        pub const REVISION: u16 = 0x08;
        pub const CLASS: u16 = 0x09;
        pub const BAR0: u16 = 0x10;
        pub const SUBSYSTEM_VENDOR: u16 = 0x2c;
        pub const SUBSYSTEM: u16 = 0x2e;
        pub const CAPABILITIES: u16 = 0x34;
        /// The first byte behind the header.
        pub const LEN: u16 = 0x40;
        /// In COMMAND: the device answers at its addresses.
        pub const COMMAND_MEMORY: u16 = 1 << 1;
        /// In COMMAND: what a driver may change; memory, bus master, no INTx.
        pub const COMMAND_WRITABLE: u16 = COMMAND_MEMORY | 1 << 2 | 1 << 10;
        /// In STATUS: there is a list of capabilities.
        pub const STATUS_CAPABILITIES: u16 = 1 << 4;
    }

    /// MSI-X (PCI 3.0 §6.8.2).
    pub mod msix {
        /// Id of the capability.
        pub const CAPABILITY: u8 = 0x11;
        /// Bytes of the capability.
        pub const CAPABILITY_LEN: u8 = 12;
        /// In the message control word: the function uses its vectors.
        pub const ENABLE: u16 = 1 << 15;
        /// In the message control word: all vectors are masked.
        pub const MASK_ALL: u16 = 1 << 14;
        /// Bytes of a vector in the table: address, data, control.
        pub const ENTRY_LEN: u64 = 16;
        /// In a vector's control: it is masked.
        pub const ENTRY_MASKED: u32 = 1;
    }

    /// Id of a vendor's capability; all of virtio's are (§4.1.4).
    pub const CAPABILITY: u8 = 0x09;
    /// Bytes of a virtio capability; the notification's has 4 more (§4.1.4, §4.1.4.4), and so has
    /// the access capability's (§4.1.4.9).
    pub const CAPABILITY_LEN: u8 = 16;
    /// `cfg_type` (§4.1.4).
    pub const COMMON: u8 = 1;
    pub const NOTIFY: u8 = 2;
    pub const ISR: u8 = 3;
    pub const DEVICE_SPECIFIC: u8 = 4;
    pub const ACCESS: u8 = 5;
    /// Where `bar`, `offset` and `length` are in a capability, and behind them `pci_cfg_data` of
    /// the access capability (§4.1.4).
    pub const CAPABILITY_BAR: u16 = 4;
    pub const CAPABILITY_OFFSET: u16 = 8;
    pub const CAPABILITY_LENGTH: u16 = 12;
    pub const CAPABILITY_DATA: u16 = 16;

    /// No vector (§4.1.4.3).
    pub const NO_VECTOR: u16 = 0xffff;

    /// `struct virtio_pci_common_cfg`, as offsets (§4.1.4.3).
    pub mod common {
        pub const DEVICE_FEATURE_SELECT: u64 = 0x00;
        pub const DEVICE_FEATURE: u64 = 0x04;
        pub const DRIVER_FEATURE_SELECT: u64 = 0x08;
        pub const DRIVER_FEATURE: u64 = 0x0c;
        pub const CONFIG_MSIX_VECTOR: u64 = 0x10;
        pub const NUM_QUEUES: u64 = 0x12;
        pub const DEVICE_STATUS: u64 = 0x14;
        pub const CONFIG_GENERATION: u64 = 0x15;
        pub const QUEUE_SELECT: u64 = 0x16;
        pub const QUEUE_SIZE: u64 = 0x18;
        pub const QUEUE_MSIX_VECTOR: u64 = 0x1a;
        pub const QUEUE_ENABLE: u64 = 0x1c;
        pub const QUEUE_NOTIFY_OFF: u64 = 0x1e;
        pub const QUEUE_DESC: u64 = 0x20;
        pub const QUEUE_DRIVER: u64 = 0x28;
        pub const QUEUE_DEVICE: u64 = 0x30;
        /// Bytes of it, as far as the features that are offered reach.
        pub const LEN: usize = 0x38;
    }
}

/// The block device (§5.2).
pub mod blk {
    use virtio_bindings::virtio_blk;

    /// Bytes of a sector, the unit of the protocol whatever the block size (§5.2.2).
    pub const SECTOR_SIZE: u64 = 512;
    /// Bytes of the request header: type, reserved, sector (§5.2.6).
    pub const HEADER_LEN: u32 = 16;
    /// Bytes of what GET_ID answers (§5.2.6).
    pub const ID_LEN: usize = virtio_blk::VIRTIO_BLK_ID_BYTES as usize;

    /// `seg_max` in the configuration space is valid (§5.2.3).
    pub const F_SEG_MAX: u64 = 1 << virtio_blk::VIRTIO_BLK_F_SEG_MAX;
    /// The device is read-only (§5.2.3).
    pub const F_RO: u64 = 1 << virtio_blk::VIRTIO_BLK_F_RO;
    /// `blk_size` in the configuration space is valid (§5.2.3).
    pub const F_BLK_SIZE: u64 = 1 << virtio_blk::VIRTIO_BLK_F_BLK_SIZE;
    /// `topology` in the configuration space is valid (§5.2.3).
    pub const F_TOPOLOGY: u64 = 1 << virtio_blk::VIRTIO_BLK_F_TOPOLOGY;
    /// `num_queues` in the configuration space is valid (§5.2.3).
    pub const F_MQ: u64 = 1 << virtio_blk::VIRTIO_BLK_F_MQ;
    /// The device takes DISCARD (§5.2.3).
    pub const F_DISCARD: u64 = 1 << virtio_blk::VIRTIO_BLK_F_DISCARD;
    /// The device takes WRITE_ZEROES (§5.2.3).
    pub const F_WRITE_ZEROES: u64 = 1 << virtio_blk::VIRTIO_BLK_F_WRITE_ZEROES;
    /// Bytes of a range in DISCARD and WRITE_ZEROES: sector, number of sectors, flags (§5.2.6).
    pub const RANGE_LEN: u32 = 16;
    /// In a range's flags: WRITE_ZEROES may give the space back (§5.2.6).
    pub const RANGE_UNMAP: u32 = 1;
    /// The device has a cache and takes FLUSH (§5.2.3).
    pub const F_FLUSH: u64 = 1 << virtio_blk::VIRTIO_BLK_F_FLUSH;

    pub use virtio_blk::{
        VIRTIO_BLK_T_DISCARD as T_DISCARD, VIRTIO_BLK_T_FLUSH as T_FLUSH, VIRTIO_BLK_T_GET_ID as T_GET_ID,
        VIRTIO_BLK_T_IN as T_IN, VIRTIO_BLK_T_OUT as T_OUT, VIRTIO_BLK_T_WRITE_ZEROES as T_WRITE_ZEROES,
    };

    /// Status byte: done (§5.2.6).
    pub const S_OK: u8 = 0;
    /// Status byte: an error of the device or of the driver (§5.2.6).
    pub const S_IOERR: u8 = 1;
    /// Status byte: no such request (§5.2.6).
    pub const S_UNSUPP: u8 = 2;
}

/// The network device (§5.1).
pub mod net {
    use virtio_bindings::virtio_net;

    /// `mac` in the configuration space is valid (§5.1.3).
    pub const F_MAC: u64 = 1 << virtio_net::VIRTIO_NET_F_MAC;
    /// `status` in the configuration space is valid (§5.1.3).
    pub const F_STATUS: u64 = 1 << virtio_net::VIRTIO_NET_F_STATUS;
    /// `mtu` in the configuration space is valid (§5.1.3).
    pub const F_MTU: u64 = 1 << virtio_net::VIRTIO_NET_F_MTU;
    /// The device completes checksums (§5.1.3).
    pub const F_CSUM: u64 = 1 << virtio_net::VIRTIO_NET_F_CSUM;
    /// The driver takes packets without a complete checksum (§5.1.3).
    pub const F_GUEST_CSUM: u64 = 1 << virtio_net::VIRTIO_NET_F_GUEST_CSUM;
    /// The driver takes large TCP segments over IPv4 (§5.1.3).
    pub const F_GUEST_TSO4: u64 = 1 << virtio_net::VIRTIO_NET_F_GUEST_TSO4;
    /// The driver takes large TCP segments over IPv6 (§5.1.3).
    pub const F_GUEST_TSO6: u64 = 1 << virtio_net::VIRTIO_NET_F_GUEST_TSO6;
    /// ... with explicit congestion notification (§5.1.3).
    pub const F_GUEST_ECN: u64 = 1 << virtio_net::VIRTIO_NET_F_GUEST_ECN;
    /// The driver takes many UDP datagrams as one over IPv4 (virtio 1.3 §5.1.3).
    pub const F_GUEST_USO4: u64 = 1 << virtio_net::VIRTIO_NET_F_GUEST_USO4;
    /// The driver takes many UDP datagrams as one over IPv6 (virtio 1.3 §5.1.3).
    pub const F_GUEST_USO6: u64 = 1 << virtio_net::VIRTIO_NET_F_GUEST_USO6;
    /// The device cuts large TCP segments over IPv4 (§5.1.3).
    pub const F_HOST_TSO4: u64 = 1 << virtio_net::VIRTIO_NET_F_HOST_TSO4;
    /// The device cuts large TCP segments over IPv6 (§5.1.3).
    pub const F_HOST_TSO6: u64 = 1 << virtio_net::VIRTIO_NET_F_HOST_TSO6;
    /// ... with explicit congestion notification (§5.1.3).
    pub const F_HOST_ECN: u64 = 1 << virtio_net::VIRTIO_NET_F_HOST_ECN;
    /// The device cuts many UDP datagrams that come as one (virtio 1.3 §5.1.3).
    pub const F_HOST_USO: u64 = 1 << virtio_net::VIRTIO_NET_F_HOST_USO;
    /// A packet may be received into several buffers (§5.1.3).
    pub const F_MRG_RXBUF: u64 = 1 << virtio_net::VIRTIO_NET_F_MRG_RXBUF;
    /// There is a control queue (§5.1.3).
    pub const F_CTRL_VQ: u64 = 1 << virtio_net::VIRTIO_NET_F_CTRL_VQ;
    /// There are several queue pairs (§5.1.3).
    pub const F_MQ: u64 = 1 << virtio_net::VIRTIO_NET_F_MQ;
    /// Commands of the control queue, and its answers (§5.1.6.5).
    pub mod ctrl {
        /// Class: queue pairs.
        pub const MQ: u8 = 4;
        /// How many pairs are used.
        pub const MQ_VQ_PAIRS_SET: u8 = 0;
        /// Done.
        pub const OK: u8 = 0;
        /// Not done.
        pub const ERR: u8 = 1;
    }
    /// In `status`: packets can pass (§5.1.4).
    pub const S_LINK_UP: u16 = 1;

    /// In a header's flags: the checksum is to be completed (§5.1.6).
    pub const HDR_F_NEEDS_CSUM: u8 = 1;
    /// A header's kinds of segmentation (§5.1.6), and the bit that may stand beside them.
    pub mod gso {
        /// None.
        pub const NONE: u8 = 0;
        /// TCP over IPv4.
        pub const TCPV4: u8 = 1;
        /// TCP over IPv6.
        pub const TCPV6: u8 = 4;
        /// UDP, a datagram each (virtio 1.3 §5.1.6).
        pub const UDP_L4: u8 = 5;
        /// With explicit congestion notification.
        pub const ECN: u8 = 0x80;
    }
    /// Bytes of the header before each packet in either direction (§5.1.6).
    pub const HEADER_LEN: u32 = 12;
    /// Index of the first receive queue (§5.1.2).
    pub const RX: usize = 0;
    /// Index of the first transmit queue (§5.1.2).
    pub const TX: usize = 1;
}

/// The console (§5.3).
pub mod console {
    /// `cols` and `rows` in the configuration space are valid (§5.3.3).
    pub const F_SIZE: u64 = 1;
}

/// The memory balloon (§5.5).
pub mod balloon {
    /// There is a queue for statistics (§5.5.3).
    pub const F_STATS_VQ: u64 = 1 << 1;
    /// The guest takes pages back when it has none left (§5.5.3).
    pub const F_DEFLATE_ON_OOM: u64 = 1 << 2;
    /// There is a queue for free pages (§5.5.3).
    pub const F_PAGE_REPORTING: u64 = 1 << 5;
    /// Bytes of a page, whatever the guest's are (§5.5.6).
    pub const PAGE_SIZE: u64 = 4096;
    /// Index of the queue with pages for the host (§5.5.2).
    pub const INFLATE: usize = 0;
    /// Index of the queue with pages that the guest takes back (§5.5.2).
    pub const DEFLATE: usize = 1;
    /// Index of the queue with statistics, where those were negotiated (§5.5.2).
    pub const STATISTICS: usize = 2;
    /// Where `actual` stands in the configuration space (§5.5.4).
    pub const ACTUAL: u64 = 4;
    /// Bytes of a statistic: a tag of 16 bits, a value of 64 (§5.5.6.3).
    pub const STAT_LEN: u32 = 10;
}

/// The socket device (§5.10).
pub mod vsock {
    /// Bytes of the header before the payload of each packet (§5.10.6).
    pub const HEADER_LEN: u32 = 44;
    /// The host's context id (§5.10.4).
    pub const HOST_CID: u64 = 2;
    /// The type of a connection that is a stream (§5.10.6).
    pub const TYPE_STREAM: u16 = 1;
    /// An event: all connections are gone (§5.10.6.7).
    pub const EVENT_TRANSPORT_RESET: u32 = 0;
    /// In a SHUTDOWN's flags: the sender receives no more (§5.10.6.5).
    pub const SHUTDOWN_RCV: u32 = 1;
    /// In a SHUTDOWN's flags: the sender sends no more (§5.10.6.5).
    pub const SHUTDOWN_SEND: u32 = 2;
    /// Both.
    pub const SHUTDOWN_BOTH: u32 = SHUTDOWN_RCV | SHUTDOWN_SEND;
}
