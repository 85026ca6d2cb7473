//! Parses the bytes of a descriptor: [`Descriptor::parse`].
//!
//! The bytes come from a datastore that others write. Known keys are matched without regard to case and must be
//! unique: otherwise two programs could read two different disks out of one descriptor, and a `ParentCID` that only
//! the hypervisor understands would hide a snapshot. Allocations are bounded by the file's own bounded size.

use std::ops::Range;

use super::{
    Access, Cid, CreateType, DESCRIPTOR_BYTES_MAX, Descriptor, DescriptorError, EXTENTS_MAX, ExtentKind, ExtentLine,
    ExtentName, Fault,
    descriptor::{EXTENT_SECTORS_MAX, LINE_BYTES_MAX, shortened},
};

const HEADER: &str = "# Disk DescriptorFile";
const LONG_CONTENT_ID_DIGITS: usize = 32;
/// Keys that put another layer between the disk and its flat file.
const FOREIGN_LAYERS: [&str; 5] =
    ["encryptionkeys", "ddb.iofilters", "ddb.sidecars", "ddb.nativeparentcid", "ddb.nativeparenthint"];

impl Descriptor {
    /// Parses a descriptor file's bytes.
    ///
    /// # Errors
    /// [`DescriptorError`] names the line and what is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Descriptor, DescriptorError> {
        let text = text_of(bytes).map_err(|fault| DescriptorError { line: 0, fault })?;
        let mut found = Found::default();
        let mut at = 0;
        for (line_number, line) in (1..).zip(text.split('\n')) {
            found.take_line(line, at).map_err(|fault| DescriptorError { line: line_number, fault })?;
            at += line.len() + 1;
        }
        found.finish().map_err(|fault| DescriptorError { line: 0, fault })
    }
}

/// The text before any padding of NUL bytes.
fn text_of(bytes: &[u8]) -> Result<&str, Fault> {
    if bytes.len() > DESCRIPTOR_BYTES_MAX {
        return Err(Fault::TooLarge(bytes.len()));
    }
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    if end == 0 && bytes.iter().all(|&b| b == 0) {
        return Err(Fault::Empty);
    }
    if bytes[end..].iter().any(|&b| b != 0) {
        return Err(Fault::NotText);
    }
    let text = std::str::from_utf8(&bytes[..end]).map_err(|_| Fault::NotText)?;
    let first = text.lines().next().unwrap_or("").trim();
    if first.is_empty() && text.trim().is_empty() {
        return Err(Fault::Empty);
    }
    if first.eq_ignore_ascii_case(HEADER) { Ok(text) } else { Err(Fault::NotADescriptor) }
}

/// What the lines so far have said.
#[derive(Default)]
struct Found {
    version: Option<u8>,
    cid: Option<(Cid, Range<usize>)>,
    parent_cid: Option<Cid>,
    parent_hint: Option<String>,
    create_type: Option<CreateType>,
    long_content_id: Option<Range<usize>>,
    uuid: Option<String>,
    adapter_type: Option<String>,
    tools_version: Option<String>,
    change_tracking: Option<String>,
    foreign_layer: Option<String>,
    extents: Vec<ExtentLine>,
}

impl Found {
    /// Takes a line that begins at byte `at` of the file.
    fn take_line(&mut self, raw: &str, at: usize) -> Result<(), Fault> {
        if raw.len() > LINE_BYTES_MAX {
            return Err(Fault::LineTooLong);
        }
        let line = raw.trim();
        if line.is_empty() || line.starts_with('#') {
            return Ok(());
        }
        if let Some(extent) = extent_line(line)? {
            if self.extents.len() == EXTENTS_MAX {
                return Err(Fault::TooManyExtents);
            }
            self.extents.push(extent);
            return Ok(());
        }
        let (key, value) = line.split_once('=').ok_or(Fault::NotAnEntry)?;
        let key = key.trim();
        let value = unquoted(key, value.trim())?;
        // `value` is a part of `raw`, so its place in the file follows from their addresses.
        let start = at + (value.as_ptr().addr() - raw.as_ptr().addr());
        self.take_entry(&key.to_ascii_lowercase(), value, start..start + value.len())
    }

    fn take_entry(&mut self, key: &str, value: &str, place: Range<usize>) -> Result<(), Fault> {
        match key {
            "version" => once(&mut self.version, "version", parse_version(value)?),
            "cid" => once(&mut self.cid, "CID", (parse_cid("CID", value)?, place)),
            "parentcid" => once(&mut self.parent_cid, "parentCID", parse_cid("parentCID", value)?),
            "parentfilenamehint" => once(&mut self.parent_hint, "parentFileNameHint", value.to_owned()),
            "createtype" => once(&mut self.create_type, "createType", parse_create_type(value)?),
            "changetrackpath" => once(&mut self.change_tracking, "changeTrackPath", value.to_owned()),
            "ddb.longcontentid" => {
                let digits = value.len() == LONG_CONTENT_ID_DIGITS && value.bytes().all(|b| b.is_ascii_hexdigit());
                // An id of another shape belongs to another program: it is left as it is.
                if digits { once(&mut self.long_content_id, "ddb.longContentID", place) } else { Ok(()) }
            }
            // These have no say in how the disk is read: of several the first is shown.
            "ddb.uuid" => first(&mut self.uuid, value),
            "ddb.adaptertype" => first(&mut self.adapter_type, value),
            "ddb.toolsversion" => first(&mut self.tools_version, value),
            layer if FOREIGN_LAYERS.contains(&layer) && !value.is_empty() => {
                self.foreign_layer.get_or_insert_with(|| key.to_owned());
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn finish(self) -> Result<Descriptor, Fault> {
        let (cid, cid_at) = self.cid.ok_or(Fault::Missing("CID"))?;
        if self.extents.is_empty() {
            return Err(Fault::Missing("an extent line"));
        }
        Ok(Descriptor {
            version: self.version.ok_or(Fault::Missing("version"))?,
            cid,
            cid_at,
            long_content_id_at: self.long_content_id,
            parent_cid: self.parent_cid.ok_or(Fault::Missing("parentCID"))?,
            parent_hint: self.parent_hint,
            create_type: self.create_type.ok_or(Fault::Missing("createType"))?,
            extents: self.extents,
            uuid: self.uuid,
            adapter_type: self.adapter_type,
            tools_version: self.tools_version,
            change_tracking: self.change_tracking,
            foreign_layer: self.foreign_layer,
        })
    }
}

fn once<T>(slot: &mut Option<T>, key: &'static str, value: T) -> Result<(), Fault> {
    if slot.is_some() {
        return Err(Fault::Twice(key));
    }
    *slot = Some(value);
    Ok(())
}

fn first(slot: &mut Option<String>, value: &str) -> Result<(), Fault> {
    slot.get_or_insert_with(|| value.to_owned());
    Ok(())
}

fn unquoted<'a>(key: &str, value: &'a str) -> Result<&'a str, Fault> {
    let inner = match value.strip_prefix('"') {
        Some(rest) => rest.strip_suffix('"').ok_or_else(|| Fault::Quotes(shortened(key)))?,
        None => value,
    };
    if inner.contains('"') { Err(Fault::Quotes(shortened(key))) } else { Ok(inner) }
}

fn parse_version(value: &str) -> Result<u8, Fault> {
    match value {
        "1" => Ok(1),
        "2" => Ok(2),
        "3" => Ok(3),
        other => Err(Fault::Value { key: "version", value: shortened(other), expected: "1, 2 or 3" }),
    }
}

fn parse_cid(key: &'static str, value: &str) -> Result<Cid, Fault> {
    Cid::parse(value).ok_or_else(|| Fault::Value {
        key,
        value: shortened(value),
        expected: "1 to 8 hexadecimal digits",
    })
}

fn parse_create_type(value: &str) -> Result<CreateType, Fault> {
    if value.is_empty() || !value.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return Err(Fault::Value {
            key: "createType",
            value: shortened(value),
            expected: "a name of letters and digits",
        });
    }
    Ok(CreateType::from_name(value))
}

/// The extent that a line describes: `ACCESS SECTORS KIND ["NAME" [OFFSET]]`; `None` if it is another kind of line.
fn extent_line(line: &str) -> Result<Option<ExtentLine>, Fault> {
    let Some((word, rest)) = line.split_once(|c: char| c.is_ascii_whitespace()) else { return Ok(None) };
    let access = match word {
        "RW" => Access::ReadWrite,
        "RDONLY" => Access::ReadOnly,
        "NOACCESS" => Access::None,
        _ => return Ok(None),
    };
    let (size, rest) = split_word(rest);
    let sectors = number(size).filter(|&s| s > 0 && s <= EXTENT_SECTORS_MAX).ok_or(Fault::ExtentNumber("size"))?;
    let (kind, rest) = split_word(rest);
    let kind = match kind {
        "" => return Err(Fault::Value { key: "the extent's kind", value: String::new(), expected: "FLAT or VMFS" }),
        "FLAT" => ExtentKind::Flat,
        "VMFS" => ExtentKind::Vmfs,
        "SPARSE" => ExtentKind::Sparse,
        "ZERO" => ExtentKind::Zero,
        other => ExtentKind::Other(shortened(other)),
    };
    if kind == ExtentKind::Zero && rest.is_empty() {
        return Ok(Some(ExtentLine { access, sectors, kind, name: None, offset_sectors: 0 }));
    }
    let (name, rest) = rest.strip_prefix('"').and_then(|r| r.split_once('"')).ok_or(Fault::ExtentQuotes)?;
    let name = ExtentName::parse(name).map_err(|why| Fault::ExtentName { name: shortened(name), why })?;
    // What follows the offset names a physical device and its partition; such disks are refused by their kind.
    let (offset, _device) = split_word(rest.trim_start());
    let offset_sectors = match offset {
        "" => 0,
        digits => number(digits).filter(|&o| o <= EXTENT_SECTORS_MAX).ok_or(Fault::ExtentNumber("offset"))?,
    };
    Ok(Some(ExtentLine { access, sectors, kind, name: Some(name), offset_sectors }))
}

fn split_word(text: &str) -> (&str, &str) {
    let text = text.trim_start();
    match text.split_once(|c: char| c.is_ascii_whitespace()) {
        Some((word, rest)) => (word, rest.trim_start()),
        None => (text, ""),
    }
}

/// A decimal number without a sign.
fn number(digits: &str) -> Option<u64> {
    if digits.bytes().all(|b| b.is_ascii_digit()) { digits.parse().ok() } else { None }
}
