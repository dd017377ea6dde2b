import "uplot/dist/uPlot.min.css";
import "./app.css";
import { mount } from "svelte";
import App from "./App.svelte";
import { overwatch } from "./lib/store.svelte";

overwatch.start();

const target = document.getElementById("app");
if (target) mount(App, { target });
