/** Names what is not let through, by its first bytes, and says what its owner can do instead. */

export type Foreign = { name: string; instead: string }

export const exportAgain =
  'Export it as JPEG, PNG, MP4, WAV or another accepted format; docs/operate/gate.md lists them.'
/** Loses nothing, and takes seconds. */
export const intoMatroska =
  'Put it into Matroska as it is coded (ffmpeg -fflags +genpts -i FILE -c copy FILE.mkv), or export it as MP4.'
const intoMp4 =
  'Put it into MP4 with its rate of pictures (ffmpeg -framerate 25 -i FILE -c copy FILE.mp4).'
const exportAsPicture = 'Export the picture as JPEG, PNG or TIFF first.'
const printAsPicture = 'Export the pages as PNG or TIFF on a machine that has nothing to lose.'
export const develop = 'Develop it in a raw converter, and submit the JPEG or TIFF.'
/** Loses nothing that WAV of up to 24 bits holds. */
export const intoFlac = 'Export it as WAV or FLAC (ffmpeg -i FILE FILE.flac).'
const renderSound = 'Render it to sound first.'
const unpack = 'Unpack it, and submit the media in it one by one.'
const nameTheMedium = 'Submit the medium itself, not a list or page that points to it.'
const notMedia = 'Programs are never taken; if a camera wrote this, its card is infected.'

const called = (name: string, instead: string): Foreign => ({ name, instead })
const archive = (name: string) => called(name, unpack)
const program = called('a program', notMedia)
const rawPhoto = (name: string) => called(`camera raw (${name})`, develop)

/** Magic in hex, what people know it as, and its offset where that is not 0. */
const magics: readonly (readonly [string, Foreign, number?])[] = [
  ['ff0a', called('JPEG XL', exportAsPicture)],
  ['ff4fff51', called('JPEG 2000', exportAsPicture)],
  [hex('%PDF'), called('PDF', printAsPicture)],
  [hex('%!PS'), called('PostScript', printAsPicture)],
  ['c5d0d3c6', called('PostScript', printAsPicture)],
  [hex('8BPS'), called('PSD', exportAsPicture)],
  [hex('gimp xcf'), called('XCF', exportAsPicture)],
  ['762f3101', called('OpenEXR', exportAsPicture)],
  [hex('#?RADIANCE'), called('Radiance HDR', exportAsPicture)],
  [hex('qoif'), called('QOI', exportAsPicture)],
  [hex('SIMPLE  ='), called('FITS', exportAsPicture)],
  [hex('AT&TFORM'), called('DjVu', printAsPicture)],
  [hex('DICM'), called('DICOM', exportAsPicture), 128],
  ['d7cdc69a', called('a Windows metafile', printAsPicture)],
  [hex(' EMF'), called('a Windows metafile', printAsPicture), 40],
  ['00000100', called('an icon', exportAsPicture)],
  ['00000200', called('a cursor', exportAsPicture)],
  [hex('icns'), called('an icon', exportAsPicture)],
  ['8a4d4e470d0a1a0a', called('MNG', exportAsPicture)],
  ['8b4a4e470d0a1a0a', called('JNG', exportAsPicture)],
  ['4949bc01', called('JPEG XR', exportAsPicture)],
  ['425047fb', called('BPG', exportAsPicture)],
  [hex('FLIF'), called('FLIF', exportAsPicture)],
  [hex('DDS '), called('a texture (DDS)', exportAsPicture)],
  ['59a66a95', called('a Sun raster', exportAsPicture)],
  ['01da0001', called('SGI', exportAsPicture)],
  ['01da0101', called('SGI', exportAsPicture)],
  ['0a050101', called('PCX', exportAsPicture)],
  ['0a050108', called('PCX', exportAsPicture)],
  [hex('acsp'), called('a colour profile', 'Submit the picture that it belongs to.'), 36],
  [hex('FUJIFILMCCD-RAW'), rawPhoto('RAF')],
  [hex('FOVb'), rawPhoto('X3F')],
  ['004d524d', rawPhoto('MRW')],
  [hex('HEAPCCDR'), rawPhoto('CRW'), 6],
  ['49495500', rawPhoto('RW2')],
  [hex('IIRO'), rawPhoto('ORF')],
  [hex('IIRS'), rawPhoto('ORF')],
  [hex('MMOR'), rawPhoto('ORF')],
  [hex('#!AMR'), called('AMR of several channels', exportAgain)],
  [hex('FLV'), called('FLV', intoMatroska)],
  [
    '3026b2758e66cf11',
    called('WMV or ASF', 'Export it as MP4 (ffmpeg -i FILE -c:v libx264 -c:a aac FILE.mp4).'),
  ],
  ['000001ba', called('an MPEG program stream', intoMatroska)],
  ['000001b3', called('an MPEG elementary stream', intoMatroska)],
  ['060e2b34', called('MXF', intoMatroska)],
  ['1f07003f', called('bare DV', intoMatroska)],
  ['1f0700bf', called('bare DV', intoMatroska)],
  [hex('DKIF'), called('IVF', intoMatroska)],
  [hex('YUV4MPEG2 '), called('Y4M', exportAgain)],
  // A delimiter or a set of parameters comes first.
  ...['0000000109', '0000000127', '0000000167', '00000109', '00000127', '00000167'].map(
    (start) => [start, called('a bare H.264 stream', intoMp4)] as const,
  ),
  ...['000000014001', '000000014601', '0000014001', '0000014601'].map(
    (start) => [start, called('a bare HEVC stream', intoMp4)] as const,
  ),
  [hex('MThd'), called('MIDI', renderSound)],
  [hex('IMPM'), called('a tracker module', renderSound)],
  [hex('Extended Module:'), called('a tracker module', renderSound)],
  [hex('SCRM'), called('a tracker module', renderSound), 44],
  [hex('M.K.'), called('a tracker module', renderSound), 1080],
  [hex('caff'), called('a Core Audio file (CAF)', intoFlac)],
  [hex('.snd'), called('a Sun or NeXT sound (AU)', intoFlac)],
  [hex('dns.'), called('a Sun or NeXT sound (AU)', intoFlac)],
  [hex('Creative Voice File'), called('a Creative voice file (VOC)', intoFlac)],
  ['726966662e91cf11', called('Wave64', intoFlac)],
  [hex('wvpk'), called('WavPack', intoFlac)],
  [hex('MAC '), called("Monkey's Audio", intoFlac)],
  [hex('MPCK'), called('Musepack', intoFlac)],
  [hex('MP+'), called('Musepack', intoFlac)],
  [hex('TTA1'), called('True Audio', intoFlac)],
  [hex('DSD '), called('DSD', intoFlac)],
  [hex('FRM8'), called('DSD', intoFlac)],
  [hex('ADIF'), called('AAC without frames (ADIF)', intoFlac)],
  [hex('.ra\xfd'), called('RealAudio', intoFlac)],
  [hex('.RMF'), called('RealMedia', exportAgain)],
  [hex('#!SILK'), called('SILK', exportAgain)],
  [hex('\x02#!SILK'), called('SILK', exportAgain)],
  [hex('#!iLBC'), called('iLBC', intoFlac)],
  ['0b77', called('AC-3', intoFlac)],
  ['7ffe8001', called('DTS', intoFlac)],
  ['504b0304', archive('a ZIP archive')],
  ['504b0506', archive('a ZIP archive')],
  ['504b0708', archive('a ZIP archive')],
  ['1f8b', archive('gzip')],
  ['1f9d', archive('compressed data')],
  [hex('BZh'), archive('bzip2')],
  ['fd377a585a00', archive('xz')],
  ['28b52ffd', archive('zstd')],
  ['04224d18', archive('lz4')],
  ['377abcaf271c', archive('a 7z archive')],
  [hex('Rar!'), archive('a RAR archive')],
  [hex('MSCF'), archive('a cabinet archive')],
  [hex('!<arch>'), archive('an ar archive')],
  [hex('ustar'), archive('a tar archive'), 257],
  ['d0cf11e0a1b11ae1', called('an Office document', printAsPicture)],
  [hex('SQLite format 3'), called('a database', exportAgain)],
  ['7f454c46', program],
  ['cafebabe', program],
  ['feedface', program],
  ['feedfacf', program],
  ['cefaedfe', program],
  ['cffaedfe', program],
  ['0061736d', program],
  [hex('dex\n'), program],
  [hex('MZ'), program],
]

/** Text is never a medium, whatever it asks a decoder to fetch; the names help whoever sent it. */
const texts: readonly (readonly [RegExp, Foreign])[] = [
  [/^#EXTM3U|^\[playlist\]|^#EXT-X-/i, called('a playlist', nameTheMedium)],
  [/^ffconcat/, called('a playlist', nameTheMedium)],
  [/<svg[\s>]|<!doctype\s+svg/i, called('SVG', exportAsPicture)],
  [/<(?:asx|smil|playlist|mpd|xspf|wpl)[\s>:]/i, called('a playlist', nameTheMedium)],
  [/<msl|^push graphic-context|^viewbox /i, called('a drawing script', exportAsPicture)],
  [/<!doctype\s+html|<html|<script|<body/i, called('HTML', nameTheMedium)],
  [/^#!|^<\?php/i, called('a script', notMedia)],
  [/^<\?xml/i, called('XML', nameTheMedium)],
  [/^v=0\r?\n/, called('a session description', nameTheMedium)],
  [/^WEBVTT|^\[Script Info\]|^1\r?\n\d\d:\d\d:/, called('subtitles', nameTheMedium)],
  [pnm(), called('PNM', exportAsPicture)],
]

/** Major brands that are something else than a film, although they are boxes like one. */
const brands = new Map([
  ['crx ', rawPhoto('CR3')],
  ['jxl ', called('JPEG XL', exportAsPicture)],
  ['jp2 ', called('JPEG 2000', exportAsPicture)],
  ['jpx ', called('JPEG 2000', exportAsPicture)],
  ['jpm ', called('JPEG 2000', exportAsPicture)],
  ['mjp2', called('Motion JPEG 2000', exportAgain)],
  ['M4P ', called('protected M4P', exportAgain)],
])

/** Finds one of the known magics at its place. */
export function foreignMagic(head: Buffer): Foreign | undefined {
  const known = magics.find(([magic, , offset = 0]) => {
    return head.toString('hex', offset, offset + magic.length / 2) === magic
  })
  return known?.[1]
}

/** Finds a brand of the ISO base media file format that is no film and no accepted picture. */
export function foreignBrand(major: string): Foreign | undefined {
  return brands.get(major)
}

/** Tells what kind of text it is; undefined when it holds bytes that no text has. */
export function foreignText(head: Buffer): Foreign | undefined {
  const start = textOf(head)?.trimStart()
  if (start === undefined) return undefined
  return texts.find(([pattern]) => pattern.test(start))?.[1] ?? called('text', nameTheMedium)
}

/** With a byte order mark also UTF-16. */
function textOf(head: Buffer): string | undefined {
  const mark = head.toString('hex', 0, 3)
  if (mark.startsWith('fffe')) return head.toString('utf16le', 2)
  if (mark.startsWith('feff')) {
    const even = head.subarray(2, head.length - (head.length % 2))
    return Buffer.from(even).swap16().toString('utf16le')
  }
  const body = mark === 'efbbbf' ? head.subarray(3) : head
  // PNM goes on in binary behind its header.
  if (pnm().test(body.toString('latin1', 0, 3))) return body.toString('latin1')
  if (body.some((byte) => byte < 9 || (byte > 13 && byte < 32 && byte !== 27))) return undefined
  return body.toString('latin1')
}

/** @see netpbm(5): `P`, one digit or letter, white space. */
function pnm(): RegExp {
  return /^P[1-7fF][\s#]/
}

function hex(ascii: string): string {
  return Buffer.from(ascii, 'latin1').toString('hex')
}
