// Draws dashboard.json with Grafana's own components (@grafana/ui and @grafana/data, which are Apache-2.0), without its server.
// The page's address says where Prometheus is and from when to when: ?prometheus=http://…&from=MS&to=MS&scrape=SECONDS
import "@fontsource/inter/latin-400.css";
import "@fontsource/inter/latin-500.css";
import {
  applyFieldOverrides, createTheme, dateTime, dateTimeFormat, EventBusSrv, FieldConfigOptionsRegistry, FieldType,
  getDisplayValueAlignmentFactors, getFieldDisplayValues, LoadingState, rangeUtil, ThemeContext, toDataFrame, type DataFrame,
} from "@grafana/data";
import { BigValue, GlobalStyles, PanelChrome, PanelContextProvider, TimeSeries, VizRepeater } from "@grafana/ui";
import { useEffect, useState } from "react";
import { createRoot } from "react-dom/client";
import dashboard from "../../../deploy/monitoring/dashboard.json";

type Panel = (typeof dashboard.panels)[number] & Record<string, any>;
type Series = { metric: Record<string, string>; value: [number, string]; values?: [number, string][] };

const asked = new URLSearchParams(location.search);
const [from, to] = ["from", "to"].map((name) => Number(asked.get(name)));
const scrape = Number(asked.get("scrape"));
const theme = createTheme({ colors: { mode: "dark" } });
const SHARED = { theme, timeZone: "utc", replaceVariables: (text: string) => text };
const timeRange = { from: dateTime(from), to: dateTime(to), raw: { from: dateTime(from), to: dateTime(to) } };
const [COLUMN, ROW, GAP] = [(innerWidth - 16) / 24, 38, 8]; // a row of Grafana's grid is 30 px and a gap of 8
const context = { eventsScope: "global", eventBus: new EventBusSrv() };

// What Grafana's panels assume where a dashboard says nothing.
const ASSUMED: Record<string, any> = {
  timeseries: {
    color: { mode: "palette-classic" },
    custom: {
      drawStyle: "line", lineInterpolation: "linear", lineWidth: 1, fillOpacity: 0, gradientMode: "none", showPoints: "auto",
      pointSize: 5, spanNulls: false, insertNulls: false, axisPlacement: "auto", axisColorMode: "text",
      scaleDistribution: { type: "linear" }, thresholdsStyle: { mode: "off" }, stacking: { mode: "none", group: "A" },
      hideFrom: { legend: false, tooltip: false, viz: false },
    },
  },
  stat: { color: { mode: "thresholds" } },
};

// The settings that a field may have: @grafana/data lays the dashboard's over the assumed ones. Each is taken as it is.
const PLAIN = ["unit", "min", "max", "decimals", "displayName", "noValue", "color", "thresholds", "mappings"];
const CUSTOM = [...Object.keys(ASSUMED.timeseries.custom), "axisSoftMax"];
const setting = (path: string, isCustom: boolean): any => ({
  ...{ id: isCustom ? `custom.${path}` : path, name: path, path, isCustom },
  ...{ process: (value: unknown) => value, shouldApply: () => true },
});
const settings = new FieldConfigOptionsRegistry(() => [
  ...PLAIN.map((path) => setting(path, false)),
  ...CUSTOM.map((path) => setting(path, true)),
]);

/** The query with the dashboard's variables replaced as Grafana's Prometheus source does it, all jobs and pods chosen. */
function interpolate(expression: string, step: number): string {
  const values: Record<string, string> = { $__rate_interval: `${Math.max(step + scrape, 4 * scrape)}s` };
  for (const variable of dashboard.templating.list) {
    values[`$${variable.name}`] = (variable as { allValue?: string }).allValue ?? "";
  }
  return expression.replace(/\$\w+/g, (name) => values[name] ?? name);
}

/** One frame a series, named by the target's legend. */
async function ask(target: Record<string, any>, width: number): Promise<DataFrame[]> {
  const step = Math.max(scrape, Math.ceil(rangeUtil.calculateInterval(timeRange, width).intervalMs / 1000));
  const query = interpolate(target.expr, step);
  const [path, words] = target.instant
    ? ["query", { query, time: to / 1000 }]
    : ["query_range", { query, start: from / 1000, end: to / 1000, step }];
  const answer = await (await fetch(`${asked.get("prometheus")}/api/v1/${path}?${new URLSearchParams(words as any)}`)).json();
  if (answer.status !== "success") {
    throw new Error(`${target.expr}: ${answer.error}`);
  }
  return answer.data.result.map(({ metric, value, values = [value] }: Series) => {
    const name = (target.legendFormat as string).replace(/\{\{(\w+)\}\}/g, (_, label) => metric[label] ?? "");
    const numbers = values.map(([, value]) => (Number.isFinite(Number(value)) ? Number(value) : null));
    return toDataFrame({
      refId: target.refId,
      fields: [
        { name: "Time", type: FieldType.time, values: values.map(([at]) => at * 1000), config: { interval: step * 1000 } },
        { name: "Value", type: FieldType.number, values: numbers, labels: metric, config: { displayNameFromDS: name } },
      ],
    });
  });
}

/** The panel's series with its units, colours and overrides. */
async function load(panel: Panel, width: number): Promise<DataFrame[]> {
  const data = (await Promise.all(panel.targets.map((target: any) => ask(target, width)))).flat();
  const { defaults, overrides } = panel.fieldConfig;
  const assumed = ASSUMED[panel.type];
  const custom = { ...assumed.custom, ...defaults.custom };
  const fieldConfig = { defaults: { ...assumed, ...defaults, custom }, overrides };
  return applyFieldOverrides({ ...SHARED, data, fieldConfig, fieldConfigRegistry: settings });
}

function Stat({ panel, frames, width, height }: { panel: Panel; frames: DataFrame[]; width: number; height: number }) {
  const { reduceOptions, graphMode, colorMode, textMode, justifyMode, orientation } = panel.options;
  const wanted = { data: frames, fieldConfig: panel.fieldConfig, reduceOptions, sparkline: graphMode !== "none" };
  return (
    <VizRepeater
      {...{ width, height, orientation, source: frames, renderCounter: 1, autoGrid: true, itemSpacing: 3 }}
      getValues={() => getFieldDisplayValues({ ...SHARED, ...wanted })}
      getAlignmentFactors={getDisplayValueAlignmentFactors}
      renderValue={({ value: { display, sparkline }, ...size }) => (
        <BigValue {...{ ...size, theme, graphMode, colorMode, textMode, justifyMode, value: display, sparkline }} />
      )}
    />
  );
}

function Drawing({ panel, width, height }: { panel: Panel; width: number; height: number }) {
  const [frames, setFrames] = useState<DataFrame[]>();
  useEffect(() => {
    load(panel, width).then(setFrames).catch((error) => console.error(`${panel.title}: ${error}`));
  }, []);
  useEffect(() => {
    if (frames?.length) {
      console.info(`DRAWN ${panel.id}`);
    }
  }, [frames]);
  if (frames === undefined || frames.length === 0) {
    return <div style={{ padding: 8 }}>{frames && "No data"}</div>;
  }
  if (panel.type === "stat") {
    return <Stat {...{ panel, frames, width, height }} />;
  }
  return <TimeSeries {...{ frames, width, height, timeRange, legend: panel.options.legend, timeZone: "utc", theme }} />;
}

function Placed({ panel }: { panel: Panel }) {
  const { x, y, w, h } = panel.gridPos;
  const [width, height] = [w * COLUMN - GAP, h * ROW - GAP];
  const place = { position: "absolute" as const, left: GAP + x * COLUMN, top: y * ROW, width, height };
  if (panel.type === "row") {
    return <h4 style={{ ...place, lineHeight: `${ROW}px` }}>⌄ {panel.title}</h4>;
  }
  return (
    <div style={place}>
      <PanelChrome {...{ width, height, title: panel.title, description: panel.description, loadingState: LoadingState.Done }}>
        {(innerWidth, innerHeight) => <Drawing panel={panel} width={innerWidth} height={innerHeight} />}
      </PanelChrome>
    </div>
  );
}

createRoot(document.getElementById("root")!).render(
  <ThemeContext.Provider value={theme}>
    <GlobalStyles />
    <PanelContextProvider value={context as any}>
      <h3 style={{ height: 44, margin: 0, padding: "10px 16px" }}>
        {dashboard.title}, {[from, to].map((time) => dateTimeFormat(time, SHARED)).join(" to ")} UTC, all jobs and pods
      </h3>
      <div style={{ position: "relative" }}>
        {(dashboard.panels as Panel[]).map((panel) => <Placed key={panel.id} panel={panel} />)}
      </div>
    </PanelContextProvider>
  </ThemeContext.Provider>,
);
