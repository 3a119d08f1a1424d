/** How parsers of pictures say that one is damaged, and at which byte. */
import { SluiceError } from '@sluice/protocol/errors'

/** `media.corrupt` with the position where the picture broke. */
export class DamagedPicture extends SluiceError {
  readonly atByte: number

  constructor(atByte: number) {
    super('media.corrupt', `the picture is damaged or cut short at byte ${atByte}`, {
      hint: 'Copy it from the camera again, or take what still decodes with the option salvage.',
    })
    this.atByte = atByte
  }
}

/** A picture that is whole but of a kind within its format that nothing here decodes. */
export class UnsupportedPicture extends SluiceError {
  readonly found: UnsupportedKind

  constructor(found: UnsupportedKind) {
    const { name, instead } = unsupportedKinds[found]
    super('media.unsupported', `the content is ${name}, which is not accepted`, { hint: instead })
    this.found = found
  }
}

const exportAsPicture = 'Export the picture as JPEG, PNG or TIFF of 8 or 16 bits first.'

/** Told by a short word, as it comes out of a sandbox that is not to be quoted. */
export const unsupportedKinds = {
  'lossless-jpeg': { name: 'a lossless or hierarchical JPEG', instead: exportAsPicture },
  'deep-jpeg': { name: 'a JPEG of 12 bits', instead: exportAsPicture },
  'camera-raw': {
    name: 'camera raw',
    instead: 'Develop it in a raw converter, and submit the JPEG or TIFF.',
  },
  'deep-samples': {
    name: 'a picture whose samples are signed, floating or of more than 16 bits',
    instead: exportAsPicture,
  },
  'odd-samples': {
    name: 'a picture whose samples fill no whole number of bytes',
    instead: exportAsPicture,
  },
  'many-channels': { name: 'a picture of more than five channels', instead: exportAsPicture },
  compression: { name: 'coded in a way that nothing here decodes', instead: exportAsPicture },
  sequence: {
    name: 'an image sequence without a still picture',
    instead: 'Export it as a film, or as single pictures.',
  },
} as const

export type UnsupportedKind = keyof typeof unsupportedKinds

/** What of a picture is beyond a limit, in words for a message. */
export const tooMuch = {
  pixels: 'too many pixels',
  memory: 'too many pixels for the memory that a decoder may have',
  frames: 'too many frames',
  pages: 'too many pages',
  scans: 'too many passes',
  metadata: 'metadata that unpacks to too much',
  nesting: 'too many parts, or parts within each other too deep',
} as const

export type TooMuch = keyof typeof tooMuch

/** A picture beyond a limit; which one. */
export class TooLargePicture extends SluiceError {
  readonly what: TooMuch

  constructor(what: TooMuch) {
    super('media.too_large', `the picture has ${tooMuch[what]}`, {
      hint: 'The limits are in docs/operate/gate.md; scale the picture down, or split it.',
    })
    this.what = what
  }
}
