/** Remembers which control plane this is: its stores are marked with that. */
import { type ControlPlaneId, controlPlaneId } from '@sluice/protocol/ids'
import { newId } from '@sluice/protocol/process/new-id'
import type { Database, Queries } from '../database/database.ts'
import { controlPlane } from '../database/schema.ts'

/** The id of this control plane, made at its first start; a copy of the database has the same. */
export async function ownControlPlaneId(database: Database, atMs: number): Promise<ControlPlaneId> {
  const known = await database.read(idIn)
  if (known !== undefined) return known
  return database.write(async ({ sql }) => {
    const id = newId(controlPlaneId, atMs)
    await sql.insert(controlPlane).values({ id, createdAtMs: atMs })
    return id
  })
}

async function idIn(sql: Queries): Promise<ControlPlaneId | undefined> {
  return (await sql.query.controlPlane.findFirst())?.id
}
