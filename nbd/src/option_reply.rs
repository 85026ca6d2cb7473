//! Writes the server's answers to negotiation options into a buffer.

use super::export::Export;
use super::limits::MESSAGE_BYTES_MAX;
use super::wire::{self, info, rep};

/// The answers to one option.
pub(super) struct OptionReply<'a> {
    option: u32,
    out: &'a mut Vec<u8>,
}

impl<'a> OptionReply<'a> {
    pub(super) fn new(option: u32, out: &'a mut Vec<u8>) -> Self {
        Self { option, out }
    }

    pub(super) fn ack(&mut self) {
        self.put(rep::ACK, &[]);
    }

    pub(super) fn error(&mut self, code: u32, message: &str) {
        let end = message.floor_char_boundary(MESSAGE_BYTES_MAX);
        self.put(code, &[&message.as_bytes()[..end]]);
    }

    pub(super) fn server(&mut self, export: &Export) {
        let name_len = (export.name.len() as u32).to_be_bytes();
        self.put(rep::SERVER, &[&name_len, export.name.as_bytes(), export.description.as_bytes()]);
    }

    pub(super) fn info_export(&mut self, size: u64, flags: u16) {
        self.info(info::EXPORT, &[&size.to_be_bytes(), &flags.to_be_bytes()]);
    }

    pub(super) fn info_name(&mut self, export: &Export) {
        self.info(info::NAME, &[export.name.as_bytes()]);
    }

    pub(super) fn info_description(&mut self, export: &Export) {
        self.info(info::DESCRIPTION, &[export.description.as_bytes()]);
    }

    pub(super) fn info_block_size(&mut self, export: &Export) {
        let sizes = [export.block_min, export.block_preferred, export.block_max].map(u32::to_be_bytes);
        self.info(info::BLOCK_SIZE, &[&sizes[0], &sizes[1], &sizes[2]]);
    }

    pub(super) fn meta_context(&mut self, id: u32, name: &str) {
        self.put(rep::META_CONTEXT, &[&id.to_be_bytes(), name.as_bytes()]);
    }

    fn info(&mut self, kind: u16, parts: &[&[u8]]) {
        let kind = kind.to_be_bytes();
        let mut all: [&[u8]; 4] = [&kind, &[], &[], &[]];
        all[1..=parts.len()].copy_from_slice(parts);
        self.put(rep::INFO, &all);
    }

    fn put(&mut self, reply: u32, parts: &[&[u8]]) {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        self.out.extend_from_slice(&wire::OPTION_REPLY_MAGIC.to_be_bytes());
        self.out.extend_from_slice(&self.option.to_be_bytes());
        self.out.extend_from_slice(&reply.to_be_bytes());
        self.out.extend_from_slice(&(len as u32).to_be_bytes());
        parts.iter().for_each(|part| self.out.extend_from_slice(part));
    }
}
