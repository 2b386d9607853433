//! TensorBoard's event file, written by hand: TFRecord framing around `tensorflow.Event` messages.
//!
//! A record is `length: u64le, masked_crc32c(length): u32le, data, masked_crc32c(data): u32le` with
//! `masked(c) = ((c >> 15) | (c << 17)) + 0xa282ead8` (tensorflow/core/lib/io/record_writer.h). `Event` has
//! `wall_time = 1: double, step = 2: int64, file_version = 3: string, summary = 5`, `Summary` `value = 1` repeated with
//! `tag = 1: string, simple_value = 2: float` (event.proto, summary.proto). `wall_time` holds the step number: the file
//! is a function of the log, equal for equal runs, so TensorBoard's relative time axis counts steps as seconds.

use crate::metrics::Entry;

/// Name of the file in `runs/`; TensorBoard looks for `tfevents` in it.
pub const FILE_NAME: &str = "events.out.tfevents.0000000000.luthier";

/// What the file begins with.
pub fn header() -> Vec<u8> {
    let mut event = Vec::new();
    double(&mut event, 1, 0.0);
    bytes(&mut event, 3, b"brain.Event:2");
    record(&event)
}

/// One log entry's event.
pub fn event(entry: &Entry) -> Vec<u8> {
    let mut summary = Vec::new();
    let scalars = [
        ("train/loss", Some(entry.loss)),
        ("train/balance_loss", entry.balance_loss),
        ("train/learning_rate", Some(entry.learning_rate)),
        ("train/grad_norm", Some(entry.grad_norm)),
        ("train/epoch", Some(entry.epoch)),
        ("train/tokens", Some(entry.train_tokens as f64)),
        ("validation/loss_nats", entry.validation_loss_nats),
    ];
    for (tag, value) in scalars.into_iter().filter_map(|(tag, value)| Some((tag, value?))) {
        let mut message = Vec::new();
        bytes(&mut message, 1, tag.as_bytes());
        float(&mut message, 2, value as f32);
        bytes(&mut summary, 1, &message);
    }
    let mut event = Vec::new();
    double(&mut event, 1, entry.step as f64);
    varint_field(&mut event, 2, entry.step);
    bytes(&mut event, 5, &summary);
    record(&event)
}

/// The whole file of a log.
pub fn file(log: &[Entry]) -> Vec<u8> {
    let mut all = header();
    log.iter().for_each(|entry| all.extend(event(entry)));
    all
}

fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut out = length.to_vec();
    out.extend(masked_crc(&length).to_le_bytes());
    out.extend(data);
    out.extend(masked_crc(data).to_le_bytes());
    out
}

fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

// Protobuf wire types: 0 varint, 1 eight bytes, 2 length and bytes, 5 four bytes.

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value as u8 & 0x7f) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn varint_field(out: &mut Vec<u8>, field: u8, value: u64) {
    out.push(field << 3);
    varint(out, value);
}

fn double(out: &mut Vec<u8>, field: u8, value: f64) {
    out.push(field << 3 | 1);
    out.extend(value.to_le_bytes());
}

fn float(out: &mut Vec<u8>, field: u8, value: f32) {
    out.push(field << 3 | 5);
    out.extend(value.to_le_bytes());
}

fn bytes(out: &mut Vec<u8>, field: u8, value: &[u8]) {
    out.push(field << 3 | 2);
    varint(out, value.len() as u64);
    out.extend(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_the_one_that_tensorflow_writes() {
        // 24 bytes: wall_time (9) and file_version (15); masked crc of the length worked by the definition above.
        let header = header();
        assert_eq!(header.len(), 8 + 4 + 24 + 4);
        assert_eq!(&header[..8], &24u64.to_le_bytes());
        // tensorboard 2.x files of a version event all begin with these bytes.
        assert_eq!(&header[8..12], &[0xa3, 0x7f, 0x4b, 0x22]);
        assert_eq!(&header[12 + 9..12 + 24], b"\x1a\x0dbrain.Event:2");
    }

    #[test]
    fn varints_are_seven_bits_a_byte() {
        let mut out = Vec::new();
        varint(&mut out, 300);
        assert_eq!(out, [0xac, 0x02]);
    }
}
